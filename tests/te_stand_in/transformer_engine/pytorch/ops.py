"""The operation-based interface: Megatron names its classes in annotations and makes none here."""


class Sequential:
    pass


class FusibleOperation:
    pass
