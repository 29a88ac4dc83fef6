"""Preparing corpora: documents of any usual format to tokenized, packed, held-out MDS folders."""
