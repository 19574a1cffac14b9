"""Example texts, written for this page."""

TEXTS = {
    "A walk to work": (
        "The bus was late again, so I walked. Halfway up Mill Street a dog I had never met decided we were friends and trotted beside me "
        "as far as the bakery, where it sat down and looked at the door, then at me, then at the door. I had four coins. The woman inside "
        "said it does this to everybody and that last week a man in a suit bought it a whole cream slice. I got us a roll to share. By "
        "the time I reached the office my shoes were soaked, I had crumbs in my scarf, and the nine o'clock meeting had been moved to "
        "Thursday anyway."
    ),
    "A fox and a crow": (
        "Once upon a time there was a little fox who lived at the edge of a great forest. Every morning the fox went to the river to "
        "drink, and every morning a crow sat in the old oak tree and watched. One day the crow said to the fox, “Why do you always come "
        "alone?” The fox answered, “I have no friend to come with me.” So the crow flew down from the tree, and from that day on they "
        "went to the river together, and they lived happily for many years."
    ),
    "Too short": "Too short to say anything about.",
}
