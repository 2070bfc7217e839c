"""The benchmark suite behind ``gan-fast bench``: layers and training steps against PyTorch's own, in turns.

* :mod:`gan_fast.suite.shapes`: the fixed list of layers; :mod:`gan_fast.suite.spec`: one layer as a word of text.
* :mod:`gan_fast.suite.peers`: the programs that gan_fast is measured against.
* :mod:`gan_fast.suite.layers`, :mod:`gan_fast.suite.steps`: what is timed, after its results are
  checked.
* :mod:`gan_fast.suite.sweeps`: how often: a few turns of each piece of work, then of the next, until enough is known.
* :mod:`gan_fast.suite.scaling`: a step along batch, side, channels and threads.
* :mod:`gan_fast.suite.exponents`: how its cost grows there, and why that changes.
* :mod:`gan_fast.suite.results`: rows, files, ratios, tables; :mod:`gan_fast.suite.changes`: what changed between files.
* :mod:`gan_fast.suite.confirm`: what looks slower, once more in other processes.
* :mod:`gan_fast.suite.report`: the page of a result file.
"""
