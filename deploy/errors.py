"""What can go wrong in deploy.

DeployError (carries the HTTP status that an edge answers with)
├── BadArtifact 422: a policy folder that must not reach an engine
│   ├── BadManifest     manifest.json is missing, unreadable, or does not describe this folder
│   ├── Truncated       a file is shorter than the manifest or its own header says
│   ├── WrongDigest     a file, or the manifest itself, is not what was published
│   ├── UnlistedFile    a file that the manifest does not list
│   ├── MissingFile     a file that the manifest lists, or that the kind of policy needs
│   ├── UnsafePath      a symbolic link, or a path that leaves the folder
│   ├── Pickle          a file that can run code when it is read
│   ├── ForbiddenFile   a kind of file that no policy needs (Python, shared libraries)
│   ├── AutoMap         a config that asks for code of its own
│   ├── BadTensors      not a well-formed safetensors file
│   ├── NotFinite       a weight is NaN or infinite
│   ├── WrongShape      a tensor does not fit the base
│   ├── WrongTokenizer  made for another tokenizer or chat template
│   └── WrongBase       made for another base
├── UnknownPolicy 404
├── VersionTaken 409: another policy has this number
├── RolloutRefused 409: the transition table, or the gate, says no
├── BadPlan 500: a KUDOS_ROLLOUT_ setting that cannot be
├── NoSuchModel 500: the model that KUDOS_MODEL names is nowhere
├── NoBase 503: no base has been registered yet
├── LeaseHeld 409: somebody else has the lease
└── LeaseLost 409: the lease went to somebody else, or ran out
"""


class DeployError(Exception):
    status = 500

    @property
    def message(self) -> str:
        return str(self)


class BadArtifact(DeployError):
    """The message starts with the name of the error, so that a log line says which."""

    status = 422

    def __init__(self, reason: str) -> None:
        super().__init__(f"{type(self).__name__}: {reason}")


class BadManifest(BadArtifact): ...


class Truncated(BadArtifact): ...


class WrongDigest(BadArtifact): ...


class UnlistedFile(BadArtifact): ...


class MissingFile(BadArtifact): ...


class UnsafePath(BadArtifact): ...


class Pickle(BadArtifact): ...


class ForbiddenFile(BadArtifact): ...


class AutoMap(BadArtifact): ...


class BadTensors(BadArtifact): ...


class NotFinite(BadArtifact): ...


class WrongShape(BadArtifact): ...


class WrongTokenizer(BadArtifact): ...


class WrongBase(BadArtifact): ...


class UnknownPolicy(DeployError):
    status = 404


class VersionTaken(DeployError):
    status = 409


class RolloutRefused(DeployError):
    status = 409


class BadPlan(DeployError): ...


class NoSuchModel(DeployError): ...


class NoBase(DeployError):
    status = 503


class LeaseHeld(DeployError):
    status = 409


class LeaseLost(DeployError):
    status = 409
