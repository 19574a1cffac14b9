"""The model cards of the bundled pair: baselines to compare with, samples, and the page that shows them."""

def baselines(books, valid): return {}
def samples(model, tokenizer, chat): return []
def render(name, facts): return name
