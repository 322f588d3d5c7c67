"""Training stages, the plugins of group `qpack.trainers`: see `qpack.training`."""
