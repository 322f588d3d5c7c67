"""The `qpack` command, installed as `qpack.cli`: parsing and printing only."""

if __name__ != "qpack.cli":
    raise ImportError("import qpack.cli, not cli")
