"""What a run costs before it runs: the compiled program read, work and time counted by hand, meshes ranked."""
