"""Data parallel: several processes, each with its share of the batch, train one network.

A training step stays a pure function.  What is summed over processes goes through an `Axis`, which
is an explicit argument and of one process by default:

    with parallel.join() as processes:  # those that torchrun started
        axis = processes.axis
        step = train.make_train_step(net, optimizer, gradient=parallel.gradient(axis))
        train_state, measured = step(train_state, (axis.shard(images), axis.shard(labels)))
"""

from funcnets.parallel.augmentation import shard_augmentation
from funcnets.parallel.axis import Axis
from funcnets.parallel.gradients import gradient, synchronize
from funcnets.parallel.processes import JoinError, PeerError, Processes, join, world_size
from funcnets.parallel.replicas import DivergenceError, check_replicas, hash_leaves
from funcnets.parallel.sharing import share_in_memory

__all__ = [
    "Axis",
    "DivergenceError",
    "JoinError",
    "PeerError",
    "Processes",
    "check_replicas",
    "gradient",
    "hash_leaves",
    "join",
    "shard_augmentation",
    "share_in_memory",
    "synchronize",
    "world_size",
]
