"""Parameters on disk: safetensors files, model folders, and the one way from any of them to the mesh."""
