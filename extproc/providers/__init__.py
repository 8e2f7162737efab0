"""Who has the models: which provider a request goes to, and what it needs to be let in there."""
