"""Self-contained HTML pages: a frame, tables that sort, and plots as inline SVG; others say what is told on them.

* :mod:`gan_fast.pages.frame`: the page, its style and its one script, sections and tables.
* :mod:`gan_fast.pages.plots`: matplotlib's figures as SVG in the page's own colours, light and dark.

Nothing is loaded from anywhere.
"""
