"""Which expert should live where: from a load to an expert map, and from one map to the next by legal steps. Pure."""
