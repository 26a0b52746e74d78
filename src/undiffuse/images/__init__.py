"""Floor 0: pictures. Reading any common file, writing PNG with the recipe that made it, grids to look at.

Numpy arrays at the border, Pillow inside (imported on first use). Pixel values are in 0..255 whatever the
bit depth of the file, so 8-bit and 16-bit pictures can share a data set.
"""

from undiffuse._lazy import lazy

__getattr__, __dir__, __all__ = lazy(
    __name__,
    {
        "MissingReader": "undiffuse.images.movies:MissingReader",
        "UnreadablePicture": "undiffuse.images.read:UnreadablePicture",
        "curves": "undiffuse.images.views:curves",
        "film_strips": "undiffuse.images.views:film_strips",
        "image_grid": "undiffuse.images.grid:image_grid",
        "movie_grid": "undiffuse.images.views:movie_grid",
        "photograph": "undiffuse.images.photographs:photograph",
        "read_image": "undiffuse.images.read:read_image",
        "read_recipe": "undiffuse.images.write:read_recipe",
        "slices": "undiffuse.images.views:slices",
        "write_image": "undiffuse.images.write:write_image",
        "write_movie": "undiffuse.images.movies:write_movie",
    },
)
