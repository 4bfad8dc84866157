"""Training questions of the demo's domain model, one on each line, by the 14 subjects of MMLU-Pro."""

_BIOLOGY = """
What does a ribosome do in a cell?
How do plants turn sunlight into sugar?
Describe the stages of mitosis
Why do leaves change color in autumn?
What is the difference between DNA and RNA?
Which organelle produces most of a cell's ATP?
How does natural selection lead to new species?
Explain how enzymes lower activation energy in living cells
What are the parts of a flower and their functions?
How do whales breathe under water?
In a cross of two heterozygous pea plants, what fraction of the offspring is recessive?
What separates prokaryotes from eukaryotes?
How do birds know when to migrate?
What role do decomposers play in an ecosystem?
Explain the Krebs cycle
Why are mitochondria thought to come from bacteria?
What happens during crossing over in meiosis?
How do viruses replicate inside a host cell?
Which kingdom do mushrooms belong to?
Describe how CRISPR edits a gene
How does osmosis move water across a membrane?
What is a keystone species? Give an example
Why can a mule not have offspring?
How do bees communicate where nectar is?
Transcription of a gene begins when RNA polymerase binds to which site?
What is the function of chlorophyll?
Explain the food chain in a pond
How did the giraffe evolve such a long neck?
What do stem cells differentiate into?
How are amphibians different from reptiles?
What is codominance in genetics?
Describe the structure of the cell membrane
Why do some animals hibernate in winter?
What is the role of tRNA in protein synthesis?
How do fungi reproduce with spores?
Which blood type can an O and an AB parent pass on to a child?
"""

_BUSINESS = """
How do I write a business plan for a coffee shop?
What is a good profit margin for a small retailer?
Explain the four Ps of marketing
How should I price a new software subscription?
What does a SWOT analysis look like for an airline?
How do I find the first customers for my startup?
What is the difference between leadership and management?
Calculate the markup on an item that costs 40 and sells for 60
How can our sales team improve its conversion rate?
What are key performance indicators for customer service?
How do I value a company before selling it?
Describe a just-in-time inventory system
What belongs on a balance sheet?
How do franchises make money?
Give me ideas to reduce employee turnover
What is brand equity and how is it built?
How do I pitch my company to investors?
A firm pays a dividend of 2 dollars per share; what is the dividend yield at a price of 50?
What is the difference between revenue and profit?
How do I run an effective quarterly planning meeting with my managers?
Which organizational structure suits a fast growing company?
What is B2B marketing?
How can a shop calculate its break-even point?
Explain corporate social responsibility
What is supply chain management?
How do I negotiate a better price with a supplier?
What should an annual report tell shareholders?
Compute straight-line depreciation for a machine bought for 10,000
How does double-entry bookkeeping work?
What makes a good mission statement?
When should a company go public?
How do I forecast next quarter's sales?
What is market segmentation?
Why do so many mergers fail to create value?
How do human resources departments measure performance?
What is a stakeholder in corporate governance?
"""

_CHEMISTRY = """
What is the pH of a 0.01 M solution of hydrochloric acid?
Balance the equation for the combustion of propane
Why does ice float on water?
What is the difference between an ionic and a covalent bond?
How do I calculate the molar mass of glucose?
Explain Le Chatelier's principle
Which element has the highest electronegativity?
What happens when sodium reacts with water?
How does a catalyst speed up a reaction?
Describe the trends of atomic radius in the periodic table
What is an isomer?
How many moles are in 36 grams of water?
What is oxidation and reduction?
Why is carbon able to form so many compounds?
Name the functional group of an alcohol
How do buffers resist a change in pH?
What is the hybridization of carbon in methane?
Explain how soap dissolves grease
What is the limiting reagent in this reaction?
How does titration determine the concentration of an acid?
What are noble gases and why are they inert?
Draw the Lewis structure of carbon dioxide
What is Avogadro's number used for?
Why does rust form on iron?
How do you separate a mixture by distillation?
What is an exothermic reaction?
Explain the mechanism of an SN2 substitution
What is the solubility product of silver chloride?
How does a galvanic cell work?
What color does litmus turn in a base?
Which isotope of carbon is radioactive?
What is the ideal gas constant and when does it apply?
How are polymers made from monomers?
Why do transition metals form colored complexes?
What is the oxidation state of manganese in permanganate?
Explain the difference between molarity and molality
"""

_COMPUTER_SCIENCE = """
How do I reverse a linked list in Python?
What is the difference between a process and a thread?
Why is my SQL query so slow with a join?
Explain how a hash table handles collisions
Write a function that checks whether a string is a palindrome
What does the git rebase command do?
How does public key encryption work?
My React component renders twice, what is wrong?
What is the time complexity of quicksort in the worst case?
How do I parse JSON in Java?
Explain the difference between TCP and UDP
What is a deadlock and how can an operating system avoid it?
How do I center a div with CSS?
What is recursion?
Fix this error: IndexError: list index out of range
How does a compiler turn source code into machine code?
What are the benefits of using TypeScript over plain JavaScript?
How do I write a unit test for a REST API?
Explain promises and callbacks in Node.js
Which data structure should I use for a priority queue?
What is a foreign key in a relational database?
How do I deploy a Docker container to Kubernetes?
What does Big O notation mean?
How do I debug a segmentation fault in C++?
What is the difference between supervised and unsupervised machine learning?
Explain garbage collection in Go
How does a binary search tree work?
What is dynamic programming? Show an example in code
How can I read a large CSV file with pandas?
What is a race condition?
How do neural networks learn with backpropagation?
Write a regular expression that matches an email address
What is object oriented programming?
How does DNS resolve a domain name?
Refactor this Rust function so that it does not clone the vector
Is the halting problem decidable?
How do I set up a web server with nginx?
What is a pointer in C?
How do coroutines work in Kotlin?
My bash script fails with permission denied
What is the difference between an abstract class and an interface?
How does virtual memory use page tables?
Write a for loop in JavaScript that prints the numbers 1 to 10
How do I merge two dictionaries?
What is continuous integration in software development?
"""

_ECONOMICS = """
What causes inflation?
Explain the law of supply and demand
How does a central bank set interest rates?
What is the difference between GDP and GNP?
Why do countries trade with each other?
What happens to the price of a good when demand rises and supply stays the same?
What is opportunity cost?
How does quantitative easing affect the economy?
Explain price elasticity of demand
What is a recession?
Why do monopolies produce less than competitive markets?
What is the effect of a minimum wage on employment?
Describe the Phillips curve
How do tariffs change domestic prices?
What is comparative advantage?
How is unemployment measured?
What does Keynes say about government spending in a slump?
Explain the tragedy of the commons as a market failure
Why do exchange rates fluctuate?
What is the money multiplier?
When marginal cost equals marginal revenue, what does a firm do?
What are public goods and why are they underprovided?
How does fiscal policy differ from monetary policy?
What is a Gini coefficient?
Why did the housing bubble lead to the financial crisis of 2008?
What is deadweight loss from a tax?
How does a budget deficit affect national debt?
Explain diminishing marginal utility
What is a Nash equilibrium in an oligopoly?
How do subsidies affect consumer surplus?
What is purchasing power parity?
Why is hyperinflation so damaging to an economy?
What shifts the aggregate supply curve?
How does the bond yield curve predict a downturn?
What is stagflation?
Does free trade reduce wages in rich countries?
"""

_ENGINEERING = """
How thick must a steel beam be to carry a load of 20 kN?
What is the difference between alternating and direct current motors?
How does a heat exchanger work?
Calculate the Reynolds number for water flowing in a pipe
What is the function of a transistor in an amplifier circuit?
How do suspension bridges carry their weight?
Which material is best for a turbine blade?
Explain how a PID controller keeps a temperature constant
What is the voltage drop across two resistors in series?
How does a jet engine produce thrust?
What is fatigue failure in metals?
Design a low-pass filter with a cutoff of 1 kHz
How does a four stroke engine work?
What is the yield strength of a material?
How do I size a pump for an irrigation system?
Describe the Rankine cycle in a power plant
What is the bending moment of a simply supported beam?
How do transformers step up voltage?
What is the difference between a truss and a frame?
How is concrete reinforced against tension?
Explain the open-loop transfer function and its stability
How does a hydraulic press multiply force?
What type of foundation suits a house on clay soil?
How do gears change torque and speed?
What is the efficiency of a three phase induction motor?
How does 3D printing compare with CNC machining for prototypes?
What does a stress-strain diagram show?
How do engineers make buildings resist earthquakes?
What is signal to noise ratio in a communication channel?
How do I choose a bearing for a rotating shaft?
Describe how a wind turbine is controlled in strong wind
What is the modulus of elasticity?
How does a refrigeration compressor work?
Which welding method should be used for aluminum?
What is a flip-flop in a digital logic circuit?
How is the drag coefficient of a car body measured?
"""

_HEALTH = """
What are the symptoms of the flu?
How can I lower my cholesterol?
Is it safe to take ibuprofen with aspirin?
Why do I get headaches in the afternoon?
How much sleep does an adult need?
What should I do about a sore throat that lasts two weeks?
How is type 2 diabetes treated?
What are the side effects of antibiotics?
My knee hurts after running, what could it be?
What is a healthy heart rate at rest?
Can stress raise my blood sugar?
How do vaccines protect against measles?
What are early signs of a stroke?
How long is someone with chickenpox contagious?
Which vitamins should pregnant women take?
What does an MRI scan show that an X-ray does not?
How can I treat a mild burn at home?
Why is my child's fever higher at night?
What is the recommended dose of paracetamol for adults?
How do I know if a mole is skin cancer?
What foods help against iron deficiency anemia?
What leads to kidney stones?
A patient presents with chest pain and shortness of breath; what is the first test?
What is asthma and how is it managed?
How can I relieve lower back pain?
What happens in the body during an allergic reaction?
Is it dangerous to skip a dose of my medication?
How does chemotherapy work against tumors?
Which exercises are good for high blood pressure patients?
What is the difference between a cold and COVID?
How do I get rid of acne?
What is the incubation period of hepatitis B?
When should a nurse change a wound dressing?
What increases the risk of a heart attack?
I feel dizzy when I stand up, should I see a doctor?
What is the treatment of a urinary tract infection?
How often should I have my teeth checked by a dentist?
What is dementia and how does it progress?
Are low carb diets good for your health?
Why do my hands go numb at night?
"""

_HISTORY = """
Why did the Roman Empire fall?
When did the First World War begin?
Who was the first president of the United States?
What was the cause of the French Revolution?
Describe daily life in ancient Egypt
How did the Black Death change Europe?
What was the Silk Road?
Why was the Berlin Wall built?
Who was Genghis Khan?
What did the Treaty of Versailles demand of Germany?
How did the Ottoman Empire take Constantinople?
Explain the significance of the Magna Carta in medieval England
What started the American Civil War?
Who discovered the sea route to India?
What was the Cuban missile crisis?
How did Napoleon lose at Waterloo?
What were the effects of the Industrial Revolution on workers in the nineteenth century?
When did women get the vote in Britain?
What was the Meiji Restoration in Japan?
Who built the pyramids at Giza?
How did Gandhi lead India to independence?
What was the Renaissance?
Why did the Soviet Union collapse?
What happened on D-Day?
Which dynasty built most of the Great Wall of China?
Describe the transatlantic slave trade
What was the Enlightenment in the eighteenth century?
Who were the Vikings and where did they settle?
What was the Marshall Plan after World War II?
How did Julius Caesar come to power?
What did archaeologists find at Pompeii?
Why did the Spanish Armada fail in 1588?
What was apartheid and when did it end?
Tell me about the Inca civilization
What was the New Deal of Franklin Roosevelt?
Who led the Bolsheviks in 1917?
"""

_LAW = """
Can my boss fire me without notice?
What is the difference between civil and criminal law?
How do I contest a parking ticket in court?
Is a verbal contract legally binding?
What rights do I have if I am arrested?
How do I write a will that is valid?
My tenant does not pay rent, how can I evict him?
What is the statute of limitations for fraud?
Do I need a lawyer for a divorce?
What does habeas corpus mean?
Who is liable if a guest slips on my stairs?
How do I register a trademark?
Can the police search my car without a warrant?
What is negligence in tort law?
What are the elements of a valid contract?
My neighbor built a fence on my land, can I sue?
How does child custody work after a separation?
What is the difference between a misdemeanor and a felony?
Can I copy a photo from the internet without breaking copyright?
What happens if I break my lease early?
Explain the Miranda warning
What is a non-disclosure agreement and can it be enforced?
The defendant was charged with burglary; what must the prosecution prove?
Does GDPR apply to a company outside Europe?
How do I file a claim in small claims court?
What is the burden of proof in a criminal trial?
Is it legal to record a phone call?
What can I do about unpaid overtime at work?
Who inherits when there is no will?
What is double jeopardy under the Fifth Amendment?
How long does a patent protect an invention?
My landlord will not fix the heating, what are my rights as a tenant?
What is the doctrine of precedent?
Can a minor sign a binding agreement?
What does power of attorney allow someone to do?
How do I appeal a court decision?
What counts as defamation?
Is an online seller obliged to give me a refund by law?
What penalty do I face for driving without a license?
What is judicial review of a statute?
"""

_MATH = """
Solve x squared minus 5x plus 6 equals 0
What is the derivative of sin(x) times x?
How do I find the area of a circle?
What is 17 times 23?
Prove that the square root of 2 is irrational
What is the integral of 1 over x?
How many ways can 5 people sit in a row?
What is the probability of rolling two sixes?
Explain the Pythagorean theorem
Find the eigenvalues of a 2 by 2 matrix
What is the slope of the line through (1,2) and (3,8)?
What is a prime number?
Convert 3/8 to a decimal
Simplify the fraction 84 over 126
How do I compute a standard deviation by hand?
What is the limit of (1 + 1/n)^n?
Is the group of integers under addition cyclic?
What is the greatest common divisor of 48 and 180?
Find the sum of the first 100 positive integers
How do I multiply two matrices?
What is the value of cos 60 degrees?
Evaluate the polynomial 2x^3 - x + 4 at x = 2
What is the volume of a cone with radius 3 and height 7?
Explain what a logarithm is
Which of these functions is continuous but not differentiable?
What percentage of 80 is 12?
Show that there are infinitely many primes
How do I complete the square?
What is the dimension of the kernel of this linear map?
If a train covers 120 km in 1.5 hours, what is its average speed in km per hour?
What is a geometric series and when does it converge?
Solve the system 2x + y = 7 and x - y = 2
What is the number of subsets of a set with 6 elements?
How do I factor a quadratic?
What is the remainder of 2^100 divided by 7?
Expand (a + b) to the fourth power
"""

_OTHER = """
Hello, how are you?
Tell me a joke
What should I name my dog?
Recommend a movie for tonight
How do I make pancakes?
What is a good recipe for lentil soup?
Where should I go on vacation in May?
Which hotels in Rome are near the station?
Who won the football match yesterday?
What are the rules of tennis?
Write a poem about the sea
Write a birthday card for my sister
Translate good morning into Spanish
What is the weather like today?
Help me plan a weekend in Lisbon
What gift can I buy for my grandmother?
How do I get red wine out of a carpet?
Can you recommend a good novel?
Thanks, that was great!
Good night
What can you do?
How long should I boil an egg?
What is the best way to pack a suitcase?
Which guitar should a beginner buy?
Suggest a fun game for a party
Play some relaxing music
Set a timer for ten minutes
What is trending on social media?
How do I train my puppy to sit?
My cat does not like her new food
Who sings this song?
What should I wear to a wedding?
How do I bake bread without yeast?
Give me a dinner idea with chicken and rice
Is the museum open on Sunday?
How do I get from the airport to the city center?
What time is it in Tokyo?
Which team has won the most world cups in soccer?
How do I fold a paper plane?
What color should I paint my bedroom?
Tell me a story about a dragon
Rewrite this email so that it sounds more polite
Summarize the plot of a fairy tale
What are fun things to do with kids on a rainy day?
How do I water an orchid on my balcony?
Which camera lens is good for portraits?
I am bored, what shall we talk about?
What is your favorite color?
Suggest a nickname for my hamster
What goes well with grilled salmon?
How do I learn to swim as an adult?
Book a table for two at eight
Which TV series should I watch next?
What is a nice name for a boat?
How do I make cold brew coffee at home?
Make up a slogan for a school fair
What is the capital of Australia?
How many moves does a knight have in chess?
How do I clean a leather sofa?
What does the word serendipity mean?
I need an outfit for a job on a rainy day
asdf qwer zxcv
Lorem ipsum dolor sit amet
ok
Can you help me?
What snacks should I bring to a picnic?
Say something nice to cheer me up
"""

_PHILOSOPHY = """
What did Kant mean by the categorical imperative?
Do we have free will?
Explain Plato's allegory of the cave
What is utilitarianism?
What is the difference between knowledge and belief?
Is it ever morally right to lie?
Describe Descartes' argument that he exists because he thinks
What is existentialism according to Sartre?
How does Aristotle define virtue?
What is the problem of evil?
Explain the trolley problem in ethics
What did Nietzsche mean when he said that God is dead?
What is epistemology?
Is this argument valid: all men are mortal, Socrates is a man, so Socrates is mortal?
What is the mind-body problem?
How did Hume criticize the idea of causation?
What is Stoicism?
Explain the veil of ignorance of John Rawls
What is the meaning of life?
What fallacy is committed when you attack the person and not the argument?
Can a machine be conscious?
What is moral relativism?
Describe the social contract of Hobbes
What is the ship of Theseus paradox?
What does phenomenology study?
What is the ontological argument for the existence of God?
What did Confucius teach about virtue?
Explain the difference between deontology and consequentialism
What is nihilism?
Is beauty objective or in the eye of the beholder?
According to Singer, do animals have moral status?
What is a sound argument in logic?
What did Socrates mean by the examined life?
What is determinism?
How does Locke explain personal identity?
What is the is-ought gap?
"""

_PHYSICS = """
What is Newton's second law of motion?
How fast does an object fall after 3 seconds?
Explain the theory of relativity
What is quantum entanglement?
Why is the sky blue?
What is the wavelength of light with a frequency of 500 THz?
How does gravity bend light?
What is the kinetic energy of a 2 kg ball moving at 3 m/s?
Explain the photoelectric effect
What is the difference between mass and weight?
How do magnets work?
What is Heisenberg's uncertainty principle?
Two charges attract each other; what happens to the force if the distance doubles?
What is a black hole?
Why does a spinning top stay upright?
What is entropy in thermodynamics?
How does a lens focus light?
What is the Doppler effect?
A block slides down a frictionless incline; find its acceleration
Why do astronauts float in orbit?
What is dark matter?
How does nuclear fusion power the sun?
What is the speed of sound in air?
Explain conservation of momentum in a collision
What is the half-life of a radioactive nucleus?
What is an electric field?
How do standing waves form on a string?
What is the moment of inertia of a solid sphere?
What does the Schrodinger equation describe?
What are quarks?
How does a pendulum's period depend on its length?
What is total internal reflection?
How did the universe begin in the big bang?
How do gravitational waves form when neutron stars merge?
What is the magnetic flux through a loop?
How much work is done in lifting a 10 kg mass by 2 meters?
"""

_PSYCHOLOGY = """
What is cognitive dissonance?
How does classical conditioning work in Pavlov's experiment?
What did Freud say about dreams?
Why do people procrastinate?
What is the bystander effect?
Describe Piaget's stages of child development
What are the big five personality traits?
How does memory consolidation differ from recall?
What is confirmation bias?
How do children form attachment to their parents?
What is operant conditioning?
Explain Maslow's hierarchy of needs
Why are people influenced by group pressure?
What is emotional intelligence?
What did the Stanford prison experiment show about behavior?
How does cognitive behavioral therapy change thoughts?
What is the difference between introverts and extroverts?
What motivates people intrinsically?
Why do we forget names so easily?
What is the placebo effect on perception and expectation?
A therapist asks a client to say whatever comes to mind; what technique is this?
How do habits form?
What is the self-fulfilling prophecy?
What are defense mechanisms such as projection?
Explain Milgram's study of obedience
How does attention limit what we perceive?
What is self-esteem and how does it develop in teenagers?
What does an IQ test measure?
What is learned helplessness?
How do stereotypes affect how people judge others?
What is short-term memory capacity?
How can a counselor build rapport with a client?
What is the fundamental attribution error?
Why do people feel jealous in a relationship?
What is Erikson's stage of identity versus role confusion?
How do reinforcement schedules shape behavior?
"""


def _lines(block: str) -> tuple[str, ...]:
    return tuple(block.strip().splitlines())


QUESTIONS: dict[str, tuple[str, ...]] = {
    "biology": _lines(_BIOLOGY),
    "business": _lines(_BUSINESS),
    "chemistry": _lines(_CHEMISTRY),
    "computer science": _lines(_COMPUTER_SCIENCE),
    "economics": _lines(_ECONOMICS),
    "engineering": _lines(_ENGINEERING),
    "health": _lines(_HEALTH),
    "history": _lines(_HISTORY),
    "law": _lines(_LAW),
    "math": _lines(_MATH),
    "other": _lines(_OTHER),
    "philosophy": _lines(_PHILOSOPHY),
    "physics": _lines(_PHYSICS),
    "psychology": _lines(_PSYCHOLOGY),
}

# A label's position is its index in the model, so the order must not change.
LABELS: tuple[str, ...] = tuple(QUESTIONS)
