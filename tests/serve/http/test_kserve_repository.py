"""Who may load and unload models over the Open Inference Protocol, and how; over a fake service."""

import hashlib
from pathlib import Path

import httpx
from support.fake_service import FakeRepository, FakeService, kserve_face, served
from support.kserve import refused

from latentrt.serve.http.app import make_app
from latentrt.serve.http.config import HttpConfig
from latentrt.serve.messages import RefusedError


def test_admins_manage_models(tmp_path: Path) -> None:
    service = FakeService()
    repository = FakeRepository(service)
    file = tmp_path / "keys.toml"
    for name, admin in (("alice", "false"), ("root", "true")):
        digest = hashlib.sha256(name.encode()).hexdigest()
        entry = f'[[key]]\nname = "{name}"\nsha256 = "{digest}"\nadmin = {admin}\n'
        file.write_text((file.read_text() if file.exists() else "") + entry)
    app = make_app(service, HttpConfig(keys=file), faces=[kserve_face(service, repository)])
    with served(app) as address, httpx.Client(base_url=f"{address}/v2/repository") as http:
        assert "needs a valid key" in refused(http, 401, "/index")
        assert "may not manage" in refused(http, 403, "/index", headers={"Authorization": "Bearer alice"})
        http.headers["Authorization"] = "Bearer root"
        ready = {"name": "shapes", "version": "1", "state": "READY", "reason": ""}
        assert http.post("/index").json() == http.post("/index", json={"ready": True}).json() == [ready]
        assert http.post("/models/shapes/unload", json={"parameters": {"unload_dependents": True}}).json() == {}
        assert http.post("/index").json()[0]["state"] == "UNLOADING"
        assert http.post("/index", json={"ready": True}).json() == []
        repository.refusals = [RefusedError("starting", "the model shapes cannot be loaded: it is damaged", 9)]
        assert "it is damaged" in refused(http, 503, "/models/shapes/load")
        assert http.post("/models/shapes/load").json() == {}
        service.is_ready = False
        assert http.post("/index").json()[0]["reason"] == "no device is ready for it"
        assert "unknown field 'x'" in refused(http, path="/index", json={"x": 1})
        assert "ready=1: expected true or false" in refused(http, path="/index", json={"ready": 1})
        assert "expected an object" in refused(http, path="/models/shapes/load", json={"parameters": 3})
        assert "'config' is not taken" in refused(http, path="/models/shapes/load", json={"parameters": {"config": ""}})
        assert "unknown model" in refused(http, 404, "/models/x/load")
