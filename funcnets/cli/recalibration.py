"""Running statistics of batch norms that lag behind the parameters: told of, and measured anew."""

from dataclasses import replace

from funcnets import data, precision, random, runs
from funcnets.cli.evaluation import Evaluation
from funcnets.cli.preparation import Setup
from funcnets.layers import count_batch_norms
from funcnets.precision import POLICIES
from funcnets.runs import EpochRow
from funcnets.train import TrainState, shuffle_key

# After so many updates with the usual momentum, 0.1, old statistics have a weight of 0.005.
UPDATES = 50
LARGEST_GAP = 0.1  # of training accuracy, between training and evaluation mode
IMAGES_MEASURED = 1000


def recalibrate(setup: Setup, train_state: TrainState) -> TrainState:
    """Return the train state with running statistics of its own parameters.

    They are updated by 50 batches of training images, while the parameters stay.
    """
    config, images = setup.config, setup.dataset.train_images
    net = precision.cast(setup.net, POLICIES[config.precision])
    prepare, key = runs.preparation(config), shuffle_key(train_state)
    size, state = min(config.batch_size, len(images)), train_state.state
    for update in range(UPDATES):
        epoch, start = divmod(update * size, len(images) // size * size)
        chosen = data.shuffle(key, config.epochs + epoch, len(images))[start : start + size]
        x, dropout_key = prepare(images[chosen]), random.fold_in(key, update)
        _, state = net.apply(train_state.params, state, x, train=True, key=dropout_key)
    return train_state._replace(state=state)


def describe_lag(setup: Setup, train_state: TrainState, row: EpochRow) -> str | None:
    """Return a line if the statistics lag: if training images are worse in evaluation mode."""
    is_suspect = row.train_accuracy - row.watched_accuracy > LARGEST_GAP
    if not is_suspect or not count_batch_norms(setup.net):
        return None
    dataset = setup.dataset
    measured = replace(
        dataset,
        test_images=dataset.train_images[:IMAGES_MEASURED],
        test_labels=dataset.train_labels[:IMAGES_MEASURED],
    )
    accuracy = Evaluation(setup.config, setup.net, measured, setup.processes)(train_state).accuracy
    if row.train_accuracy - accuracy <= LARGEST_GAP:
        return None
    return (
        f"training images are {accuracy:.3f} correct in evaluation, {row.train_accuracy:.3f} in "
        "training: the\nrunning statistics of batch norm lag; train longer, or add --recalibrate"
    )
