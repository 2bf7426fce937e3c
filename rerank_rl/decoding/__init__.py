"""Walking down a trie of legal tokens: legality, sampling, beams, trees."""
