"""The reference trainer and its models, installed as `qpack.trainer`."""

if __name__ != "qpack.trainer":
    raise ImportError("import qpack.trainer, not trainer")
