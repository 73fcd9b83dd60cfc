"""What a run can end with besides success; each error knows the exit code of the command line."""


class MixtrainError(Exception):
    """An error whose message is meant for the user as it stands."""

    exit_code = 1


class ConfigError(MixtrainError):
    """The command line or a config file asks for something that does not exist or is out of range."""

    exit_code = 2


class DataError(MixtrainError):
    """A data set is missing, damaged or not what its declaration says."""


class ModelError(MixtrainError):
    """A model from elsewhere is missing, damaged, not supported, or no map from images to logits."""


class QueryError(MixtrainError):
    """A query is missing, damaged, not supported, or does not fit its network."""


class CheckpointError(MixtrainError):
    """A checkpoint could not be written, or none of those present can be used."""


class SoundnessError(MixtrainError):
    """An attack broke an input that was proved robust: a bug, or round-off beyond what bounds cover."""


class NonFiniteError(MixtrainError):
    """The loss or a gradient became NaN or infinite."""

    exit_code = 3


class PreemptedError(MixtrainError):
    """The run was asked to stop by SIGTERM and saved its state; the same command goes on."""

    exit_code = 75


class InterruptedRunError(MixtrainError):
    """The run was stopped by Ctrl-C and saved its state; the same command goes on."""

    exit_code = 130


class CertificateError(MixtrainError):
    """A file of certificates cannot be used, or a network cannot be checked independently."""


def first_line(error: BaseException) -> str:
    """What an error of elsewhere says, short enough for a message of ours."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0].strip().rstrip(".")[:300]
