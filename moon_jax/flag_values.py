"""What a flag says in one text: sizes of a mesh, pairs of names."""


from moon_jax.config import ConfigError, MeshConfig
from moon_jax.parallel.mesh import AXES


def parse_mesh(text: str) -> MeshConfig:
    """Returns the mesh of "fsdp=4,tensor=2"; "data" takes the devices that the others leave.

    Raises:
        ConfigError: an axis or a size is none.
    """
    sizes = {}
    for word in filter(None, text.split(",")):
        name, _, size = word.partition("=")
        if name.strip() not in AXES or name.strip() in sizes or not size.strip().lstrip("-").isdigit():
            raise ConfigError(f"--mesh={text}: {word!r} is no AXIS=SIZE; the axes are {', '.join(AXES)}")
        sizes[name.strip()] = int(size)
    return MeshConfig(**sizes)
