"""Transcripts of exchanges whose true usage is known, played through the real exchange: what is counted of each?"""
