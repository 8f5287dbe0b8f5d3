"""How many images onnxruntime is given at a time, where a game plays coalitions: by shapes and the device alone.

Nothing is timed: the same command on the same machine plays in the same portions, and so to the same last bit.
"""

from __future__ import annotations

from debride.proxy.memory import pass_bytes

ON_CPU = 64
"""A processor is no faster with more, whose tensors leave its caches: 376 images of 32x32 pixels at once took up to a
third longer in the first layers of six networks, on one thread and on two."""
_CACHED = 4 << 20
"""In the last layers they took less long: as many may go at once as take so many bytes."""
_ON_GPU = 16384


def images_at_once(place: tuple[str, int], image_bytes: int) -> int:
    """The most images in one run of a session at `place` ("cpu" or "cuda", and its number), at least 1.

    `image_bytes` is what a graph's tensors take for one image, all together, though not all are held at the same time;
    0 where nobody says.
    """
    kind, number = place
    if not image_bytes:
        return ON_CPU
    if kind == "cpu":
        return max(1, min(pass_bytes(kind) // image_bytes, max(ON_CPU, _CACHED // image_bytes)))
    most = max(1, min(_ON_GPU, pass_bytes(f"{kind}:{number}") // image_bytes))
    return most - most % ON_CPU if most > ON_CPU else most  # portions of a tensor then begin where a GPU likes it
