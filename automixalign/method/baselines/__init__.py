"""Mixers of other papers and fixed shares, one a file: what AutoMixAlign is compared with.

They know nothing of specialists.
"""
