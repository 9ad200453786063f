"""What can go wrong in training, tree on top. Each message names the mend."""


class TrainerError(Exception):
    """A run cannot go on."""


class TooFewVotes(TrainerError):
    """There is not enough to learn from yet."""


class BadEvaluationSet(TrainerError):
    """A file of an evaluation set cannot be read, or is not one."""


class RunErased(TrainerError):
    """Votes that the run learned from were erased; it may not go on."""


class UnsupportedModel(TrainerError):
    """The backbone is not a decoder that the trainer knows how to run layer by layer."""


class NoSuchDevice(TrainerError):
    """The device that the run asks for is not there."""


class OtherAdapter(TrainerError):
    """The serving policy's adapter was made with other settings than this run asks for."""


class OtherRewardModel(TrainerError):
    """A run that goes on finds a reward model that an older kudos fitted."""


class OtherCheckpoint(TrainerError):
    """A run that goes on finds a checkpoint of another version, or of other settings."""


class SamplerMismatch(TrainerError):
    """The sampler's logprobs differ from the trainer's: it does not run the weights that are being trained."""


class LostLease(TrainerError):
    """The lease ran out, or is another trainer's; this one may not publish."""
