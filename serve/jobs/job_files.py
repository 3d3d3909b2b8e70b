"""What every store does with the files of jobs: given pictures are checked, results get the names of their claims."""

import hashlib

from latentrt.serve.messages import Picture

from .files import Files
from .store import Claim, KeptPicture, StorageError


class JobFiles:
    """The files of jobs. Blocks."""

    def __init__(self, files: Files) -> None:
        self._files = files

    def input(self, sha256: str) -> bytes:
        """See `JobStore.input`."""
        data = self._files.read("inputs", sha256)
        if data is None or hashlib.sha256(data).hexdigest() != sha256:
            raise StorageError(f"the given picture {sha256[:16]}… {'is missing' if data is None else 'is damaged'}")
        return data

    def keep_picture(self, claim: Claim, picture: Picture) -> KeptPicture:
        """See `JobStore.keep_picture`. Whoever loses the claim has written under other names than the winner."""
        name = f"{claim.job}-{claim.number}-{picture.image}.{picture.format}"
        self._files.write("results", name, picture.data)
        return KeptPicture(
            picture.image,
            picture.seed,
            picture.height,
            picture.width,
            picture.format,
            len(picture.data),
            hashlib.sha256(picture.data).hexdigest(),
            name,
        )

    def picture(self, picture: KeptPicture) -> bytes | None:
        """See `JobStore.picture`."""
        return self._files.read("results", picture.name)
