"""The files of deploy/: what they promise, as far as it can be seen without Docker and without a running systemd."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

pytest.importorskip("fastapi", reason="the [serve] extra is not installed")

from conftest import answer, pool
from router_server import Served, serving

from langgraph_router_r1 import ModelRegistry
from langgraph_router_r1.cli import server as command
from langgraph_router_r1.serving.vllm import VLLMServer
from langgraph_router_r1.testing import ScriptedEngine

ROOT = Path(__file__).parent.parent
DEPLOY = ROOT / "deploy"
COMPOSE: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
SERVICES: dict[str, Any] = COMPOSE["services"]
UNIT = (DEPLOY / "router-r1.service").read_text()
KEY = "test-0123456789abcdef0123"


def stages() -> list[list[tuple[str, str]]]:
    """The instructions of the Dockerfile, by stage."""
    lines = re.sub(r"^#.*\n", "", (DEPLOY / "Dockerfile").read_text(), flags=re.MULTILINE).replace("\\\n", " ")
    found: list[list[tuple[str, str]]] = []
    for line in filter(str.strip, lines.splitlines()):
        name, _, rest = line.partition(" ")
        if name == "FROM":
            found.append([])
        found[-1].append((name, rest.strip()))
    return found


FINAL = dict(stages()[-1])


def unit(name: str) -> str:
    """The value of a setting of the unit; %d and %S are where systemd says that they are."""
    [value] = re.findall(rf"^{name}=(.*)$", UNIT.replace("\\\n", " "), re.MULTILINE)
    return str(value).replace("%d", "/run/credentials/router-r1.service").replace("%S", "/var/lib")


COMMANDS = {
    "image": json.loads(FINAL["CMD"]),
    "compose": SERVICES["router"]["command"],
    "systemd": shlex.split(unit("ExecStart"))[1:],
}


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    with serving(ScriptedEngine([answer("Lima")]), pool(small="x"), tmp_path / "runs.sqlite") as server:
        yield server


# The image


def test_the_image_is_slim_pinned_unprivileged_and_has_no_build_tools() -> None:
    bases = [instructions[0][1].split()[0] for instructions in stages()]
    assert len(bases) > 1, "what builds is not what runs"
    assert all(re.fullmatch(r"python:3\.\d+-slim-[a-z]+", base) for base in bases), bases
    assert len(set(bases)) == 1, "the environment needs the very Python that made it"
    assert FINAL["USER"] == "10001:10001"
    final = stages()[-1]
    assert not [rest for name, rest in final if name == "RUN" and re.search(r"\b(pip|apt|apt-get|gcc|curl)\b", rest)]
    assert "--without-pip" in str(stages()[0])


def test_the_image_gets_signals_and_holds_no_secret() -> None:
    assert json.loads(FINAL["ENTRYPOINT"]) == ["entrypoint.py"], "no shell between Docker and the server"
    variables = [rest for stage in stages() for name, rest in stage if name in ("ENV", "ARG")]
    assert not re.search(r"(KEY|PASSWORD|SECRET|TOKEN)", " ".join(variables))
    copied = " ".join(rest for stage in stages() for name, rest in stage if name == "COPY")
    assert not re.search(r"secrets|models|\.env|COPY \.", copied)


def test_everything_that_the_image_copies_is_sent_to_docker_and_nothing_else() -> None:
    ignore = (ROOT / ".dockerignore").read_text().splitlines()
    sent = {line[1:] for line in ignore if line.startswith("!")}
    copied = {
        source
        for stage in stages()
        for name, rest in stage
        if name == "COPY" and "--from" not in rest
        for source in [word for word in rest.split() if not word.startswith("--")][:-1]
    }
    assert "*" in ignore
    assert copied == sent
    assert all((ROOT / source).exists() for source in copied)


def test_the_health_check_tells_a_server_from_none(served: Served, tmp_path: Path) -> None:
    check = json.loads(FINAL["HEALTHCHECK"].split("CMD ", 1)[1])
    assert check[0] == "python"

    def result(port: int) -> int:
        code = check[2].replace("8787", str(port))
        environment = {**os.environ, "http_proxy": "http://127.0.0.1:9"}  # it is no way to the server itself
        return subprocess.run([sys.executable, check[1], code], capture_output=True, env=environment).returncode

    assert result(served.port) == 0
    served.api.runs.is_stopping = True
    assert result(served.port) != 0, "it takes no requests any more"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        assert result(free.getsockname()[1]) != 0


def test_secrets_come_from_files_and_the_server_takes_the_place_of_the_entrypoint(tmp_path: Path) -> None:
    program = tmp_path / "router-r1"
    code = "import json, os, sys; print(json.dumps([os.getpid(), sys.argv[1:], dict(os.environ)]))"
    program.write_text(f"#!{sys.executable}\n{code}\n")
    program.chmod(0o755)
    (tmp_path / "secret").write_text('it\'s $HOME "x"\n')
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SSL_CERT_FILE": "/none", "LINES": "1\nX_KEY_FILE=/none"}
    environment |= dict.fromkeys(
        ("OPENAI_API_KEY_FILE", "PGPASSWORD_FILE", "ROUTER_R1_SERVER_KEYS_FILE"), str(tmp_path / "secret")
    )
    entrypoint = [sys.executable, str(DEPLOY / "entrypoint.py"), "serve", "a b"]
    process = subprocess.Popen(entrypoint, env=environment, stdout=subprocess.PIPE, text=True)
    pid, arguments, found = json.loads(process.communicate()[0])
    assert (pid, arguments) == (process.pid, ["serve", "a b"])
    assert {found["OPENAI_API_KEY"], found["PGPASSWORD"], found["ROUTER_R1_SERVER_KEYS"]} == {'it\'s $HOME "x"'}
    assert not {"SSL_CERT", "X_KEY"} & set(found)
    missing = {**environment, "OPENAI_API_KEY_FILE": "/none/secret"}
    refused = subprocess.run(entrypoint, env=missing, capture_output=True, text=True)
    assert (refused.returncode, "OPENAI_API_KEY_FILE is '/none/secret'" in refused.stderr) == (1, True)
    assert os.access(DEPLOY / "entrypoint.py", os.X_OK)


# The commands


@pytest.mark.parametrize("name", COMMANDS)
def test_the_server_starts_with_the_options_of(name: str, tmp_path: Path) -> None:
    arguments = list(COMMANDS[name])
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    keys = tmp_path / "keys.toml"
    keys.write_text(f'[keys.test]\nsha256 = "{hashlib.sha256(KEY.encode()).hexdigest()}"\n')
    # The same options, with the files of this test; the last one of an option counts.
    own = {
        "--registry": DEPLOY / "config" / "models.toml",
        "--keys": keys,
        "--database": tmp_path / "runs.sqlite",
        "--host": "127.0.0.1",
        "--port": port,
    }
    arguments += [f"{option}={value}" for option, value in own.items()]
    environment = {**os.environ, "OPENAI_API_KEY": "none", "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [sys.executable, "-m", "langgraph_router_r1.cli", *arguments],
        cwd=tmp_path,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        for _ in range(600):
            assert process.poll() is None, process.communicate()[0]
            try:
                assert httpx.get(f"http://127.0.0.1:{port}/readyz").status_code == 200
                break
            except httpx.ConnectError:
                time.sleep(0.1)
        listed = httpx.get(f"http://127.0.0.1:{port}/v1/models", headers={"Authorization": f"Bearer {KEY}"}).json()
        process.send_signal(signal.SIGTERM)
        said = process.communicate(timeout=60)[0]
    finally:
        process.kill()
    assert {model["id"] for model in listed["data"]} >= {"router-r1", "quick", "strong"}
    assert "Traceback" not in said


def test_servers_that_others_reach_have_keys() -> None:
    for name in ("image", "compose"):
        said = " ".join(COMMANDS[name]).replace("=", " ")
        assert "--host 0.0.0.0" in said
        assert "--keys " in said
        assert "--insecure" not in said


def test_stopping_takes_longer_than_requests_may_take_to_end() -> None:
    assert float(SERVICES["router"]["stop_grace_period"].removesuffix("s")) > command.GRACE_S
    assert float(unit("TimeoutStopSec")) > command.GRACE_S


# The composition


def test_services_start_when_what_they_need_is_healthy_and_have_no_secret_in_the_file() -> None:
    for name, service in SERVICES.items():
        for other, how in service.get("depends_on", {}).items():
            assert how == {"condition": "service_healthy"}, name
            assert "healthcheck" in SERVICES[other]
        assert "no-new-privileges:true" in service["security_opt"]
        assert "build" in service or re.search(r":v?\d", service["image"]), "a version, and not the latest"
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", ()))
        assert set(service.get("secrets", ())) <= set(COMPOSE["secrets"])
        for variable, value in service.get("environment", {}).items():
            if re.search("KEY|PASSWORD", variable):
                assert variable.endswith("_FILE")
                assert value.removeprefix("/run/secrets/") in service["secrets"]
    assert set(SERVICES["router"]["depends_on"]) == {"postgres", "vllm"}
    assert all(set(secret) == {"file"} for secret in COMPOSE["secrets"].values())
    assert {"/deploy/models/", "/deploy/secrets/"} <= set((ROOT / ".gitignore").read_text().splitlines())


def test_vllm_serves_the_adapter_as_the_package_itself_would() -> None:
    adapters = {"router": "/models/router"}
    own = VLLMServer("/models/base", served_name="base", adapters=adapters, device="cuda").command()
    there = [word for argument in SERVICES["vllm"]["command"] for word in argument.split("=", 1)]
    for option in [word for word in own if word.startswith("--")]:
        # Where it listens and the type of its weights are vLLM's own choice; so is the rank without the adapter's file.
        assert option in there or option in ("--model", "--host", "--port", "--dtype"), option
    assert {"/models/base", "router=/models/router"} <= set(there)
    assert "--model=router" in SERVICES["router"]["command"]
    for name in ("router", "vllm"):
        assert "./models:/models:ro" in SERVICES[name]["volumes"], "the tokenizer is where vLLM says that the model is"


def test_the_sample_registry_is_one() -> None:
    assert ModelRegistry.from_file(DEPLOY / "config" / "models.toml").names == ("quick", "strong")


def test_prometheus_scrapes_what_the_server_serves(served: Served) -> None:
    config = yaml.safe_load((DEPLOY / "prometheus.yml").read_text())
    [job] = [job for job in config["scrape_configs"] if job["job_name"] == "router-r1"]
    assert job["static_configs"] == [{"targets": [f"router:{FINAL['EXPOSE']}"]}]
    page = httpx.get(f"{served.url}{job['metrics_path']}")
    assert "router_r1_running" in page.text
    assert page.headers["content-type"].startswith("text/plain")


# systemd


def test_systemd_finds_nothing_wrong_with_the_unit_and_little_exposed(tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        assert "CI" not in os.environ, "systemd-analyze is missing"
        pytest.skip("systemd-analyze is not installed: apt install systemd")
    file = tmp_path / "router-r1.service"
    # The program is not where the unit has it.
    file.write_text(UNIT.replace("/opt/router-r1/bin/router-r1", sys.executable))
    verified = subprocess.run(["systemd-analyze", "verify", str(file)], capture_output=True, text=True)
    assert verified.returncode == 0
    assert file.name not in verified.stderr, verified.stderr
    # The threshold is in tenths: 2.0 of 10, "OK" by its own words.
    graded = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", "--threshold=20", str(file)], capture_output=True, text=True
    )
    assert graded.returncode == 0, graded.stdout


def test_the_unit_needs_no_user_writes_its_state_only_and_reads_the_registry_again() -> None:
    assert unit("DynamicUser") == "yes"
    assert unit("ProtectSystem") == "strict"
    assert f"--database /var/lib/{unit('StateDirectory')}/" in unit("ExecStart")
    assert unit("ExecReload") == "/bin/kill -HUP $MAINPID"
    assert unit("LoadCredential").partition(":")[0] in unit("ExecStart")
