"""The report of a run: `collect.py` gathers its facts, `page.py` makes one self-contained page of them.

`comparison.py` puts several runs side by side, paired by seed. The page's HTML, CSS and JavaScript lie in
`assets/`; they get the facts as JSON and load nothing.
"""
