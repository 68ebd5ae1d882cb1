"""Teach: from labelled pictures, pairs or triplets to an encoder bundle. The only part that imports PyTorch.

::

    auto.py         a configuration that fits some pictures
    export.py       run folder → bundle
    loop.py         the loop
    prepare.py      a configuration → pictures in parts, batches, network, objective, base
    folder.py       the run folder
    judge.py        held-out pictures ask; the verdict
    config/         a run as a document
    networks/  losses.py  miners.py  samplers.py  augment.py  datasets.py    the parts, with plain arguments

It needs ``pip install 'lookalike[train]'``.
"""

__all__: list[str] = []
