"""The mesh, the table from logical axes to mesh axes, and the collectives."""
