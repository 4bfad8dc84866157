"""Questions that check the trained domain model and are never used for training."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Expectation:
    """The minimum total probability of a question's labels."""

    question: str
    labels: frozenset[str]
    at_least: float  # probability, 0 to 1


# The documentation shows these questions with their results. A model that fails one of them is not written.
MUST_PASS: tuple[Expectation, ...] = (
    Expectation("Explain async/await in JavaScript", frozenset({"computer science", "engineering"}), 0.75),
    Expectation("What causes high blood pressure?", frozenset({"health"}), 0.75),
    Expectation("Can my landlord keep my deposit?", frozenset({"law"}), 0.7),
    Expectation("Suggest a name for my cat", frozenset({"other"}), 0.7),
    Expectation("What should I cook tonight?", frozenset({"other"}), 0.7),
)

HELD_OUT: dict[str, tuple[str, ...]] = {
    "biology": ("How do lungs of birds differ from those of mammals?", "What is a gene mutation?"),
    "business": (
        "How do I attract more clients to my bakery?",
        "What is the return on investment of a marketing campaign?",
    ),
    "chemistry": (
        "How many electrons are in the outer shell of chlorine?",
        "What is the conjugate base of acetic acid?",
    ),
    "computer science": (
        "How do I sort a list of objects by a field in Python?",
        "What is the difference between a stack and a queue?",
        "Why does my code throw a null pointer exception?",
        "How does HTTPS keep traffic private?",
        "Write a SQL statement that counts the orders of each customer",
        "Explain the model view controller pattern",
    ),
    "economics": ("Why do prices rise when more money is printed?", "How do rent controls affect the housing supply?"),
    "engineering": (
        "How do I calculate the deflection of a cantilever beam?",
        "Which gauge of wire is needed for a 30 amp circuit?",
        "How does an anti-lock braking system work?",
        "What is the purpose of a capacitor in a power supply?",
        "How are tunnels bored through rock?",
    ),
    "health": (
        "What are the symptoms of pneumonia?",
        "Is it normal to cough for three weeks after a cold?",
        "How can I treat a sprained ankle?",
        "Which drugs are used for migraine?",
        "Should I take vitamin D in winter?",
        "What does a high white blood cell count mean?",
    ),
    "history": ("Who fought in the Battle of Hastings?", "How did the Cold War end?"),
    "law": (
        "Can I be sued for a bad review?",
        "How do I get out of a contract I signed?",
        "What is the penalty for shoplifting?",
        "Does my employer have to pay me during a trial period?",
        "What does pleading no contest mean?",
        "Who gets the house in a divorce?",
    ),
    "math": ("What is the derivative of x cubed?", "How many diagonals does an octagon have?"),
    "other": (
        "Tell me something funny",
        "How do I cook rice without it sticking?",
        "What are the best beaches in Greece?",
        "Write a short thank you note to my neighbor",
        "Who is the best basketball player of all time?",
        "What present should I get for a five year old?",
    ),
    "philosophy": ("What is Plato's theory of forms?", "Are moral values universal?"),
    "physics": ("How does a prism split white light?", "What force keeps the moon in its orbit?"),
    "psychology": ("Why do we remember bad events better than good ones?", "What did Bandura show with the Bobo doll?"),
}
