"""tritonclient, unmodified, against a server of its own: JSON and binary tensors, sync and async, and its refusals."""

from __future__ import annotations

import asyncio

import cv2
import numpy as np
import onnxruntime as ort
import pytest
import tritonclient.http as triton
import tritonclient.http.aio as triton_aio
from tritonclient.utils import InferenceServerException

from serving import BAG, BOOT, IMAGES, MODEL, first, serving, tiny_scores, write_models
from tiny import PALETTE

TOKEN = "0123456789-of-the-tests"
TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clients")
    with serving(folder, *write_models(folder), "--threads", 1) as served:
        yield served


@pytest.fixture
def client(server):
    with triton.InferenceServerClient(server.address) as made:
        yield made


def pictures(n):
    files = sorted(IMAGES.rglob("*.png"))[:: 400 // n][:n]
    return np.stack([cv2.imread(str(file), cv2.IMREAD_GRAYSCALE)[None] for file in files]).astype(np.float32) / 255


def expected(images):
    """The scores as onnxruntime gives them to the images one by one, without anything of debride."""
    session = ort.InferenceSession(str(MODEL), providers=["CPUExecutionProvider"])
    return np.concatenate([session.run(None, {"image": image[None]})[0] for image in images])


def tensor(images, *, name="image", datatype="FP32", binary=True):
    made = triton.InferInput(name, list(images.shape), datatype)
    made.set_data_from_numpy(images, binary_data=binary)
    return made


def uniform(*colours):
    return np.stack([np.broadcast_to(PALETTE[c][:, None, None], (3, 6, 5)) for c in colours]).astype(np.float32)


def test_health_readiness_and_metadata(client):
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("fashion")
    assert client.is_model_ready("tiny", "2")
    assert not client.is_model_ready("nobody")
    assert not client.is_model_ready("tiny", "3")
    about = client.get_server_metadata()
    assert about["name"] == "debride"
    assert "binary_tensor_data" in about["extensions"]
    model = client.get_model_metadata("fashion")
    assert (model["name"], model["versions"], model["platform"]) == ("fashion", ["1"], "onnxruntime_onnx")
    assert model["inputs"] == [{"name": "image", "datatype": "FP32", "shape": [-1, 1, 28, 28]}]
    assert model["outputs"] == [{"name": "scores", "datatype": "FP32", "shape": [-1, 10]}]
    assert client.get_model_metadata("tiny", "1")["versions"] == ["1", "2"]


@pytest.mark.parametrize("binary_out", [True, False])
@pytest.mark.parametrize("binary_in", [True, False])
def test_tensors_go_in_and_come_out_as_json_and_as_bytes(client, binary_in, binary_out):
    images = pictures(5)
    outputs = [triton.InferRequestedOutput("scores", binary_data=binary_out)]
    found = client.infer("fashion", [tensor(images, binary=binary_in)], outputs=outputs, request_id="of-mine")
    np.testing.assert_allclose(found.as_numpy("scores"), expected(images), atol=TOLERANCE)
    assert found.get_response()["id"] == "of-mine"
    assert (found.get_response()["model_name"], found.get_response()["model_version"]) == ("fashion", "1")
    sent_as_bytes = "binary_data_size" in found.get_output("scores").get("parameters", {})
    assert sent_as_bytes is binary_out


def test_without_named_outputs_all_come(client):
    images = pictures(3)
    np.testing.assert_allclose(
        client.infer("fashion", [tensor(images)]).as_numpy("scores"), expected(images), atol=TOLERANCE
    )


def test_more_rows_than_a_batch_come_back_in_order(client):
    images = pictures(100)
    np.testing.assert_allclose(
        client.infer("fashion", [tensor(images)]).as_numpy("scores"), expected(images), atol=TOLERANCE
    )


@pytest.mark.parametrize("way", ["gzip", "deflate"])
def test_compressed_requests_and_answers(client, way):
    images = pictures(4)
    found = client.infer(
        "fashion", [tensor(images)], request_compression_algorithm=way, response_compression_algorithm=way
    )
    np.testing.assert_allclose(found.as_numpy("scores"), expected(images), atol=TOLERANCE)


def test_versions_are_told_apart_and_the_newest_is_the_default(client):
    images = uniform(0, 2)
    for asked, answered in (("1", "1"), ("2", "2"), ("", "2")):
        found = client.infer("tiny", [tensor(images)], model_version=asked)
        np.testing.assert_allclose(found.as_numpy("scores"), tiny_scores(images, answered), rtol=1e-5, atol=1e-5)
        assert found.get_response()["model_version"] == answered


@pytest.mark.parametrize("binary", [True, False])
def test_the_best_classes_by_the_classification_extension(client, binary):
    images = uniform(1, 3)
    outputs = [triton.InferRequestedOutput("scores", binary_data=binary, class_count=2)]
    found = client.infer("tiny", [tensor(images)], model_version="1", outputs=outputs).as_numpy("scores")
    assert found.shape == (2, 2)
    texts = [text.decode() if isinstance(text, bytes) else text for text in found[:, 0]]
    best = [text.split(":") for text in texts]
    assert [(int(index), label) for _, index, label in best] == [(1, "green"), (3, "white")]
    scores = [float(score) for score, _, _ in best]
    np.testing.assert_allclose(scores, tiny_scores(images, "1").max(axis=1), rtol=1e-4)


def test_many_requests_at_once_get_their_own_answers(server):
    images = pictures(40)
    truth = expected(images)
    with triton.InferenceServerClient(server.address, concurrency=16) as client:
        asked = [client.async_infer("fashion", [tensor(image[None])]) for image in images]
        found = np.concatenate([one.get_result().as_numpy("scores") for one in asked])
    np.testing.assert_allclose(found, truth, atol=TOLERANCE)


def test_the_asyncio_client(server):
    images = pictures(40)

    async def ask():
        async with triton_aio.InferenceServerClient(server.address) as client:
            assert await client.is_server_ready()
            found = await asyncio.gather(*(client.infer("fashion", [tensor(image[None])]) for image in images))
            return np.concatenate([one.as_numpy("scores") for one in found])

    np.testing.assert_allclose(asyncio.run(ask()), expected(images), atol=TOLERANCE)


def test_a_neighbour_of_wild_values_spoils_no_answer(server):
    """Requests share batches: one whose scores overflow must be refused alone."""
    images = pictures(64)
    truth = expected(images)
    wild = np.full((1, 1, 28, 28), 3e38, np.float32)
    with triton.InferenceServerClient(server.address, concurrency=32) as client:
        for _ in range(3):
            good = []
            bad = []
            for image in images:
                good.append(client.async_infer("fashion", [tensor(image[None])]))
                bad.append(client.async_infer("fashion", [tensor(wild)]))
            found = np.concatenate([one.get_result().as_numpy("scores") for one in good])
            np.testing.assert_allclose(found, truth, atol=TOLERANCE)
            for one in bad:
                with pytest.raises(InferenceServerException, match="finite") as refused:
                    one.get_result()
                assert refused.value.status() == "422"


WRONG = {
    "model": ({"model_name": "nobody"}, {}, "404", r"nobody"),
    "version": ({"model_version": "7"}, {}, "404", r"7"),
    "input name": ({}, {"name": "picture"}, "400", r"inputs\[0\]\.name.*picture.*image"),
    "datatype": ({}, {"images": np.zeros((1, 1, 28, 28), np.int32), "datatype": "INT32"}, "400", r"datatype.*INT32"),
    "rank": ({}, {"images": np.zeros((1, 28, 28), np.float32)}, "400", r"inputs\[0\]\.shape"),
    "size": ({}, {"images": np.zeros((1, 1, 28, 29), np.float32)}, "400", r"inputs\[0\]\.shape.*29"),
    "no rows": ({}, {"images": np.zeros((0, 1, 28, 28), np.float32)}, "400", r"inputs\[0\]\.shape"),
    "NaN": ({}, {"images": np.full((1, 1, 28, 28), np.nan, np.float32)}, "400", r"inputs\[0\].*finite|NaN"),
    "infinity": ({}, {"images": np.full((1, 1, 28, 28), np.inf, np.float32)}, "400", r"inputs\[0\].*finite"),
    "output name": ({"outputs": [triton.InferRequestedOutput("logits")]}, {}, "400", r"outputs\[0\]\.name.*logits"),
    "sequence": ({"sequence_id": 3, "sequence_start": True}, {}, "400", r"sequence"),
}


@pytest.mark.parametrize("binary", [True, False], ids=["bytes", "json"])
@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_refused_by_the_name_of_the_field(client, case, binary):
    asked, sent, status, words = WRONG[case]
    given = tensor(**{"images": np.zeros((1, 1, 28, 28), np.float32), **sent}, binary=binary)
    with pytest.raises(InferenceServerException, match=words) as refused:
        client.infer(**{"model_name": "fashion", "inputs": [given], **asked})
    assert refused.value.status() == status


def test_the_same_input_twice_or_none_is_refused(client):
    zeros = np.zeros((1, 1, 28, 28), np.float32)
    with pytest.raises(InferenceServerException, match=r"inputs\[1\]\.name.*twice"):
        client.infer("fashion", [tensor(zeros), tensor(zeros)])
    with pytest.raises(InferenceServerException, match=r"inputs.*image.*missing"):
        client.infer("fashion", [])


def test_a_bearer_token_opens_the_server(tmp_path):
    images = pictures(2)
    with (
        serving(tmp_path, *write_models(tmp_path), "--threads", 1, environment={"DEBRIDE_TOKEN": TOKEN}) as server,
        triton.InferenceServerClient(server.address) as client,
    ):
        assert client.is_server_live()
        headers = {"Authorization": f"Bearer {TOKEN}"}
        found = client.infer("fashion", [tensor(images)], headers=headers)
        np.testing.assert_allclose(found.as_numpy("scores"), expected(images), atol=TOLERANCE)
        for wrong in ({}, {"Authorization": "Bearer no"}, {"Authorization": f"Basic {TOKEN}"}):
            with pytest.raises(InferenceServerException, match="token") as refused:
                client.infer("fashion", [tensor(images)], headers=wrong)
            assert refused.value.status() == "401"
        assert TOKEN not in server.log()


def test_classify_says_the_same_as_infer(server):
    for folder, label in ((BAG, 8), (BOOT, 9)):
        file = first(folder)
        answer = server.post("/v2/models/fashion/classify?top=10", file.read_bytes()).json()
        image = cv2.imread(str(file), cv2.IMREAD_GRAYSCALE)[None, None].astype(np.float32) / 255
        scores = expected(image)[0].astype(np.float64)
        shares = np.exp(scores - scores.max()) / np.exp(scores - scores.max()).sum()
        found = {row["index"]: row["probability"] for row in answer["predictions"]}
        assert answer["predictions"][0]["index"] == label
        np.testing.assert_allclose([found[k] for k in range(10)], shares, atol=1e-5)
