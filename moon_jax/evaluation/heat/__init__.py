"""Heat maps: what the embedding of a document looks at, in its pictures and its text."""
