"""Which model each client has chosen by `sd_model_checkpoint`: in the web UI one for all, here one for each."""

from collections import OrderedDict

REMEMBERED = 10_000  # clients


class ChosenModels:
    """The chosen models, as long as the server runs."""

    def __init__(self) -> None:
        self._models: OrderedDict[str, str] = OrderedDict()

    def of(self, client: str) -> str | None:
        """The name of the client's model; None where it has chosen none."""
        return self._models.get(client)

    def choose(self, client: str, model: str) -> None:
        """Draw with a model, if a call says nothing else."""
        self._models[client] = model
        self._models.move_to_end(client)
        while len(self._models) > REMEMBERED:
            self._models.popitem(last=False)
