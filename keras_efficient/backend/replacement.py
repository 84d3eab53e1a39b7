"""Methods of one object that stand for those of its class."""

import functools


class Replacement:
    """Stands for a method of `owner` until it is removed.

    It sits in the `__dict__` of the object, where it hides the method: nothing
    is tracked and nothing is saved. Several may hide each other; each can be
    removed at any time.

    Args:
        owner: The object.
        name: String, the name of the method.
        run: `run(hidden, *args, **kwargs)`, with the method that is hidden.
    """

    def __init__(self, owner, name, run):
        functools.update_wrapper(self, getattr(owner, name))
        self.owner = owner
        self.name = name
        self.run = run
        self.hidden = vars(owner).get(name)
        vars(owner)[name] = self

    def __call__(self, *args, **kwargs):
        return self.run(self.original(), *args, **kwargs)

    def original(self):
        if self.hidden is not None:
            return self.hidden
        return functools.partial(
            getattr(type(self.owner), self.name), self.owner
        )

    def remove(self):
        above = vars(self.owner).get(self.name)
        if above is self:
            if self.hidden is None:
                del vars(self.owner)[self.name]
            else:
                vars(self.owner)[self.name] = self.hidden
            return
        while above is not None and above.hidden is not self:
            above = above.hidden
        if above is not None:
            above.hidden = self.hidden


def find(owner, name, kind):
    """Return the `Replacement` of a method whose `run` is one of `kind`."""
    found = vars(owner).get(name)
    while found is not None:
        run = getattr(found, "run", None)
        if isinstance(getattr(run, "__self__", None), kind):
            return found
        found = getattr(found, "hidden", None)
    return None


def remove(owner, name, kind):
    """Remove the `Replacement` that `find` finds, if any."""
    found = find(owner, name, kind)
    if found is not None:
        found.remove()
