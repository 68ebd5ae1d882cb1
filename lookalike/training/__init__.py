"""Teach: from labelled pictures, pairs or triplets to an encoder bundle. The only part that imports PyTorch.

::

    config.py       a run as a document: TOML in, every error at once, resolved TOML out
    datasets.py     pictures as rows of a memory-mapped array, decoded once
    augment.py      whole batches changed at random, as tensors
    samplers.py     which pictures make a batch
    networks.py     the networks, and what turns their features into an embedding
    miners.py       which triplets of a batch are worth learning from
    losses.py       what is minimised
    loop.py         the loop
    watch.py        the collapse watch
    checkpoints.py  save, resume exactly
    distributed.py  several processes, one batch
    export.py       run folder → bundle

It needs ``pip install 'lookalike[train]'``.
"""
