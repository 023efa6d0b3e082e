"""The words that the prose check counts, and a plain word or phrase to write instead.

A phrase may be broken over two lines. Upper and lower case are the same. The words are not forbidden: a few
in a thousand are fine where they are the right ones.
"""

#: Phrase → suggestion. If two phrases match at the same place, the longer one is reported.
ODD_WORDS: dict[str, str] = {
    # Pronouns that hide the actor
    "anybody": "name the actor: any client, any process, any user",
    "everybody": "name the actors: all clients, all processes, all users",
    "nobody": "name the actor: no client, no process, no user",
    "somebody": "name the actor: a client, a process, another writer",
    "one's": "its",
    "those that": "name the things: the clients that, the rows that",
    "those who": "name the actors: the users who, the clients that",
    "of these": "name the things that are meant",
    "of those": "name the things that are meant",
    "whatever": "any, or name the thing",
    "whichever": "any, or name the thing",
    "whoever": "name the actor",
    "whomever": "name the actor",
    "whose": "that has, with a, or a second sentence",
    # Words that technical English has plainer ones for
    "anew": "again",
    "as ever": "as before",
    "at once": "immediately, or together",
    "but for": "except",
    "else": "otherwise",
    "or else": "otherwise",
    "ever more": "more and more",
    "in vain": "without success",
    "in which": "where, when, or a second sentence",
    "nothing but": "only",
    "oftener": "more often",
    "seldom": "rarely",
    "so many": "the number itself, or that many",
    "so much": "the amount itself, or that much",
    # Images
    "let go": "release, or close",
    "lets go": "releases, or closes",
    "put right": "clean up, or repair",
    "puts right": "cleans up, or repairs",
    "stands still": "is stalled",
    "stood still": "stalled",
    # Duties in the passive
    "is to be": "must be, or will be",
    "are to be": "must be, or will be",
    "was to be": "had to be, or should have been",
    "were to be": "had to be, or should have been",
}

#: A docstring starts with an imperative verb or a noun, not with a word of this list.
ODD_OPENINGS: tuple[str, ...] = (
    "by",
    "how",
    "of",
    "what",
    "whatever",
    "when",
    "where",
    "whether",
    "which",
    "who",
    "whoever",
    "whose",
)
