"""Floor 0: how data turns into noise. Schedules, the Gaussian and the categorical process, times and grids."""

from undiffuse._lazy import lazy

__getattr__, __dir__, __all__ = lazy(
    __name__,
    {
        "SCHEDULES": "undiffuse.process.registry:SCHEDULES",
        "CategoricalProcess": "undiffuse.process.categorical:CategoricalProcess",
        "GaussianProcess": "undiffuse.process.gaussian:GaussianProcess",
        "Schedule": "undiffuse.process.schedules:Schedule",
        "TableSchedule": "undiffuse.process.tables:TableSchedule",
        "TimeWarp": "undiffuse.process.warp:TimeWarp",
        "check_grid": "undiffuse.process.grids:check_grid",
        "make_grid": "undiffuse.process.grids:make_grid",
        "make_schedule": "undiffuse.process.registry:make_schedule",
    },
)
