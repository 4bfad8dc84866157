"""Written conversations that change their topic twice, with the topic of each turn.

They contain turns that name no topic, and turns with words of another topic ("can you cook up a better name for it").
The topic of a turn is the one that a human reader of the conversation would name.
"""

from dataclasses import dataclass

CODING, MEDICAL, LEGAL, TRAVEL, COOKING, FINANCE = "coding", "medical", "legal", "travel", "cooking", "finance"
TOPICS = (CODING, MEDICAL, LEGAL, TRAVEL, COOKING, FINANCE)


@dataclass(frozen=True)
class Turn:
    """One user message."""

    text: str
    topic: str  # one of TOPICS


@dataclass(frozen=True)
class Conversation:
    """The user messages of a conversation."""

    name: str
    turns: tuple[Turn, ...]

    @property
    def changes(self) -> int:
        """Return the number of changes of topic."""
        return sum(later.topic != earlier.topic for earlier, later in zip(self.turns, self.turns[1:], strict=False))


# The reported conversations. No setting is chosen with them. Each topic starts two of them and follows in four.
CONVERSATIONS = (
    Conversation(
        "a deploy, a wrist, leftovers",
        (
            Turn(
                "my github action fails with 'permission denied' when it runs deploy.sh, works fine on my laptop",
                CODING,
            ),
            Turn("ok did that, now it says /bin/bash^M bad interpreter", CODING),
            Turn("why does that happen only there", CODING),
            Turn("can you cook up a better name for it, 'build2' is awful", CODING),
            Turn("lol ok use that", CODING),
            Turn("commit it", CODING),
            Turn("unrelated, my right wrist tingles at night after a day of typing, should i see someone?", MEDICAL),
            Turn("about three weeks now", MEDICAL),
            Turn("both, but worse in the thumb", MEDICAL),
            Turn("and if that doesnt help?", MEDICAL),
            Turn("k thx. what can i make for dinner with leftover rice and two eggs", COOKING),
            Turn("no soy sauce, sorry", COOKING),
        ),
    ),
    Conversation(
        "a deposit, savings, Lisbon",
        (
            Turn(
                "My landlord wants to keep the whole deposit because of a scratch on the floor. Can he do that?", LEGAL
            ),
            Turn("Its in Ohio if that matters", LEGAL),
            Turn("how long does he have to answer", LEGAL),
            Turn("write me the letter then", LEGAL),
            Turn("too aggressive. doctor the wording a little", LEGAL),
            Turn("shorter pls", LEGAL),
            Turn("perfect, sending it tomorrow", LEGAL),
            Turn(
                "Different question: I have 12k sitting in a checking account. Is a high yield savings account better "
                "than treasury bills right now?",
                FINANCE,
            ),
            Turn("what's the catch", FINANCE),
            Turn("and when rates go down?", FINANCE),
            Turn("where should i stay in Lisbon for four nights, somewhere walkable", TRAVEL),
            Turn("cheaper than that", TRAVEL),
        ),
    ),
    Conversation(
        "bread, a bug, bread again",
        (
            Turn("how long do i proof sourdough in the fridge before baking", COOKING),
            Turn("mine came out flat and dense", COOKING),
            Turn("what would you do?", COOKING),
            Turn("hm. and the second one?", COOKING),
            Turn("ok ill try again saturday", COOKING),
            Turn(
                "hey can you also look at this: TypeError: 'NoneType' object is not subscriptable, in parse_rows()",
                CODING,
            ),
            Turn("def parse_rows(f): return [r['id'] for r in csv.DictReader(f) if r]", CODING),
            Turn("that killed the pain of reading it, thanks", CODING),
            Turn("now bake in a default for the empty ones", CODING),
            Turn("ok do it", CODING),
            Turn("back to the bread: would a dutch oven help with the crust", COOKING),
            Turn("i only have a pizza stone", COOKING),
        ),
    ),
    # The encoder of these tests is trained on English. This conversation and the next one are in other languages.
    Conversation(
        "Kopenhagen, eine Kündigung, Fieber",
        (
            Turn("Was kann man in drei Tagen in Kopenhagen machen, ohne arm zu werden?", TRAVEL),
            Turn("Wir sind zu viert, zwei Kinder", TRAVEL),
            Turn("und wenn es regnet?", TRAVEL),
            Turn("klingt gut, danke", TRAVEL),
            Turn("Andere Frage: Mein Chef hat mir ohne Grund gekündigt, kann ich dagegen klagen?", LEGAL),
            Turn("seit sechs Jahren", LEGAL),
            Turn("wie lange hab ich dafür Zeit", LEGAL),
            Turn("schreib es bitte kürzer", LEGAL),
            Turn("bist du sicher?", LEGAL),
            Turn("Ich hab seit gestern Fieber und Halsschmerzen, muss ich zum Arzt?", MEDICAL),
            Turn("38,9", MEDICAL),
        ),
    ),
    Conversation(
        "la hipoteca, una tortilla, Oaxaca",
        (
            Turn("¿Me conviene amortizar la hipoteca o invertir el dinero en un fondo indexado?", FINANCE),
            Turn("me quedan 18 años", FINANCE),
            Turn("¿por qué?", FINANCE),
            Turn("vale, y con el tipo fijo?", FINANCE),
            Turn("gracias, muy claro", FINANCE),
            Turn("Por cierto, ¿cómo hago una tortilla de patatas sin que se me pegue?", COOKING),
            Turn("con cebolla, claro", COOKING),
            Turn("¿y cuánto tiempo?", COOKING),
            Turn("otra vez pero más corto", COOKING),
            Turn("el mes que viene voy a México, ¿qué sitios me recomiendas en Oaxaca?", TRAVEL),
            Turn("somos dos y no tenemos coche", TRAVEL),
        ),
    ),
    Conversation(
        "a rash, a loan, a dealer",
        (
            Turn("My 4 year old has had a fever of 39 since last night and now a rash on her belly", MEDICAL),
            Turn("no, it fades when I press it", MEDICAL),
            Turn("she's drinking ok but wont eat", MEDICAL),
            Turn("what should i watch for tonight", MEDICAL),
            Turn("ok. can you make that a checklist for my husband", MEDICAL),
            Turn("thank you so much", MEDICAL),
            Turn(
                "one more thing on my mind: should I increase my 401k contributions or pay off the car loan first",
                FINANCE,
            ),
            Turn("6.9%", FINANCE),
            Turn("are you sure", FINANCE),
            Turn("hmm that hurts but makes sense", FINANCE),
            Turn("The dealer also sold me that car as accident free and it wasnt. Can I sue them?", LEGAL),
            Turn("i have it in writing", LEGAL),
        ),
    ),
    Conversation(
        "a script, its licence, the script",
        (
            Turn("write a python script that renames every photo in a folder by the date it was taken", CODING),
            Turn("some have no exif", CODING),
            Turn("use the modified time then", CODING),
            Turn("is it legal to put a comma there?", CODING),
            Turn("ha ok. what about subfolders", CODING),
            Turn("looks healthy, ship it", CODING),
            Turn("Quick legal one: if I publish it under GPL can a company still sell it?", LEGAL),
            Turn("and MIT?", LEGAL),
            Turn("so which one would you pick", LEGAL),
            Turn("fine, go with that one", LEGAL),
            Turn("ok back to the script, it crashes with UnicodeEncodeError on windows", CODING),
            Turn("same error", CODING),
        ),
    ),
    Conversation(
        "Japan, a cough, an emergency fund",
        (
            Turn("two weeks in Japan in April, first time, what route would you suggest", TRAVEL),
            Turn("is the rail pass worth it", TRAVEL),
            Turn("swap Hiroshima for Kanazawa", TRAVEL),
            Turn("hm thats a bit rich for my taste, something slower", TRAVEL),
            Turn("and day 5?", TRAVEL),
            Turn("love it", TRAVEL),
            Turn("im taking lisinopril and got a dry cough since, is that normal", MEDICAL),
            Turn("10mg, since may", MEDICAL),
            Turn("would it go away by itself", MEDICAL),
            Turn("ok ill ask my doctor to switch", MEDICAL),
            Turn("new topic: what is an emergency fund supposed to cover", FINANCE),
            Turn("how many months", FINANCE),
        ),
    ),
    Conversation(
        "wash sales, a pattern, a night train",
        (
            Turn("how does the wash sale rule work if i sell at a loss and my spouse buys the same etf", FINANCE),
            Turn("even in an ira?", FINANCE),
            Turn("ugh", FINANCE),
            Turn("give me an example with numbers", FINANCE),
            Turn("can you put that in a table", FINANCE),
            Turn("how do i write a regex that matches iso dates but not version numbers", CODING),
            Turn("it also matches 2024-13-45", CODING),
            Turn("spice up the comments a little", CODING),
            Turn("nice. does it cost anything at runtime", CODING),
            Turn("good. now something else: is the night train from Vienna to Venice any good with kids", TRAVEL),
            Turn("sleeper or couchette?", TRAVEL),
        ),
    ),
    Conversation(
        "pancakes, dizziness, a will",
        (
            Turn("What's a good substitute for buttermilk in pancakes?", COOKING),
            Turn("will they still get fluffy", COOKING),
            Turn("there are 7 of us so triple it", COOKING),
            Turn("in grams please", COOKING),
            Turn("whats the verdict on blueberries", COOKING),
            Turn("great thanks", COOKING),
            Turn("my dad gets dizzy every time he stands up, he's 71", MEDICAL),
            Turn("yes for blood pressure", MEDICAL),
            Turn("what would the doctor do first", MEDICAL),
            Turn("he's stubborn about going", MEDICAL),
            Turn(
                "He also wants to change his will and leave the house to my sister only. Does that need a notary?",
                LEGAL,
            ),
            Turn("what if he just writes it by hand", LEGAL),
        ),
    ),
    Conversation(
        "a company phone, Skye, a query",
        (
            Turn("can my employer read my private whatsapp on a company phone", LEGAL),
            Turn("uk", LEGAL),
            Turn("even if i never signed anything?", LEGAL),
            Turn("what about my colleague then", LEGAL),
            Turn("explain it like im twelve", LEGAL),
            Turn("okay, that cured my confusion", LEGAL),
            Turn("I need to get from Edinburgh to the Isle of Skye without a car, is that doable in a weekend", TRAVEL),
            Turn("which one has the better views", TRAVEL),
            Turn("what if i miss the last one", TRAVEL),
            Turn("bookmarking this", TRAVEL),
            Turn("in sql, how do i get the latest row per customer", CODING),
            Turn("postgres 15", CODING),
        ),
    ),
    Conversation(
        "a back, a lasagna, a house",
        (
            Turn("I pulled something in my lower back lifting a box, ice or heat?", MEDICAL),
            Turn("its been two days", MEDICAL),
            Turn("can i still go running", MEDICAL),
            Turn("ok and how should i sleep", MEDICAL),
            Turn("makes sense", MEDICAL),
            Turn("could you say that again but shorter", MEDICAL),
            Turn("anyway. easy lasagna for six, one of us is vegetarian", COOKING),
            Turn("can i make it the day before", COOKING),
            Turn("invest in better cheese or does it not matter", COOKING),
            Turn("and for dessert?", COOKING),
            Turn("how much house can we afford on 95k a year with no debt", FINANCE),
            Turn("and with a kid on the way?", FINANCE),
        ),
    ),
)

# The settings in conversations.yaml are chosen with these conversations.
DEVELOPMENT = (
    Conversation(
        "rendering twice, poached eggs, a camera",
        (
            Turn("why is my react component rendering twice on mount", CODING),
            Turn("yes strict mode is on", CODING),
            Turn("so its harmless?", CODING),
            Turn("remove it then", CODING),
            Turn("hm, that leaves a bad taste. other options?", CODING),
            Turn("ok go with the first", CODING),
            Turn("Totally different: how do i keep poached eggs from falling apart", COOKING),
            Turn("vinegar? really?", COOKING),
            Turn("for how many minutes", COOKING),
            Turn("can my neighbor put up a camera that points at my garden", LEGAL),
            Turn("in germany", LEGAL),
        ),
    ),
    Conversation(
        "Iceland, first investments, an image",
        (
            Turn("Is five days enough for Iceland's ring road in October?", TRAVEL),
            Turn("we'd have a small rental", TRAVEL),
            Turn("ok what would you skip", TRAVEL),
            Turn("and with a newborn?", TRAVEL),
            Turn("sounds like a recipe for disaster haha", TRAVEL),
            Turn("make it a day by day plan", TRAVEL),
            Turn("how do i start investing with 200 a month, i know nothing", FINANCE),
            Turn("what's the difference between those two", FINANCE),
            Turn("isnt that risky", FINANCE),
            Turn("cool. next: my docker image is 3 GB, how do I shrink it", CODING),
            Turn("its python with pandas", CODING),
            Turn("still 1.8", CODING),
        ),
    ),
    Conversation(
        "a tooth, Morocco, the tooth",
        (
            Turn("how long after a wisdom tooth extraction can i eat normally", MEDICAL),
            Turn("it still bleeds a little", MEDICAL),
            Turn("is that bad", MEDICAL),
            Turn("and coffee?", MEDICAL),
            Turn("ok good to know", MEDICAL),
            Turn("we want to go to Morocco in spring, is Marrakech or Fes better for a first visit", TRAVEL),
            Turn("can you book it for me", TRAVEL),
            Turn("then just list three riads", TRAVEL),
            Turn("the last one, how far is that from the center", TRAVEL),
            Turn("back to my tooth, there's a white spot where it was, is it infected?", MEDICAL),
            Turn("no smell", MEDICAL),
        ),
    ),
    Conversation(
        "a song, a commit, a lease",
        (
            Turn("I got a cease and desist for using a song in my youtube video, do I have to answer?", LEGAL),
            Turn("it was 20 seconds", LEGAL),
            Turn("they want 900 euros", LEGAL),
            Turn("draft a reply", LEGAL),
            Turn("sharper. inject some backbone", LEGAL),
            Turn("good. read it once more for typos", LEGAL),
            Turn("how do i undo my last git commit without losing the changes", CODING),
            Turn("already pushed it", CODING),
            Turn("will my colleagues hate me", CODING),
            Turn("ok done, phew, that saved my neck", CODING),
            Turn("is it smarter to lease or buy a car at 5% interest", FINANCE),
            Turn("i drive about 8000 miles a year", FINANCE),
        ),
    ),
    Conversation(
        "chili, a gym, northern lights",
        (
            Turn("my chili is way too salty, can i rescue it", COOKING),
            Turn("no potatoes in the house", COOKING),
            Turn("and how much of that", COOKING),
            Turn("fixed the bug, its great now", COOKING),
            Turn("thanks chef", COOKING),
            Turn("Something else. I signed a gym membership for 2 years and I'm moving, can I get out of it?", LEGAL),
            Turn("it says 3 months notice", LEGAL),
            Turn("what should i write them", LEGAL),
            Turn("make it polite but firm", LEGAL),
            Turn("best way to see the northern lights without spending a fortune", TRAVEL),
            Turn("not by plane", TRAVEL),
            Turn("when exactly", TRAVEL),
        ),
    ),
    Conversation(
        "rates, headaches, hummus",
        (
            Turn("what happens to my mortgage rate if the fed cuts by a quarter point", FINANCE),
            Turn("its a 5/1 arm", FINANCE),
            Turn("so should i wait", FINANCE),
            Turn("run the numbers for 320k", FINANCE),
            Turn("wow ok", FINANCE),
            Turn("does that account for the fees", FINANCE),
            Turn("I wake up with a headache almost every day, what could it be", MEDICAL),
            Turn("im 34 and sleep fine", MEDICAL),
            Turn("no", MEDICAL),
            Turn("hmm which test would show that", MEDICAL),
            Turn("sorry, last one: can you freeze hummus", COOKING),
            Turn("great, and pesto?", COOKING),
        ),
    ),
)
