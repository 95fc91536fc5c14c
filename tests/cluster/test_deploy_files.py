"""The deploy files as data: valid by Ray's and KubeRay's own schemas, closed by default, and true to their README."""

from __future__ import annotations

import functools
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import ray.autoscaler
import yaml

ROOT = Path(__file__).parents[2]
CLUSTER = ROOT / "cluster"
RAY_FILES = [CLUSTER / f"{name}.yaml" for name in ("aws", "gcp", "on_premise")]
MANIFESTS = sorted((CLUSTER / "kubernetes").glob("*.yaml"))
CRDS = [
    Path(os.environ.get("GENREC_DATA", ROOT.parent / "shared" / "data")).parent / "cluster",
    ROOT / "../shared/cluster",
]


def documents(path: Path) -> list[dict[str, Any]]:
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    return list(yaml.load_all(path.read_text(encoding="utf-8"), Loader=loader))


def pods(node: Any) -> Iterator[dict[str, Any]]:
    """Every pod template's spec, wherever it stands."""
    if isinstance(node, dict):
        if "containers" in node:
            yield node
        for value in node.values():
            yield from pods(value)
    elif isinstance(node, list):
        for value in node:
            yield from pods(value)


ALL_PODS = [
    pytest.param(pod, id=f"{path.stem}-{number}-{pod['containers'][0]['name']}")
    for path in MANIFESTS
    for number, pod in enumerate(pods(documents(path)))
]


# ------------------------------------------------------------------ schemas


@pytest.mark.parametrize("path", RAY_FILES, ids=lambda path: path.stem)
def test_a_cluster_file_is_valid_by_rays_own_schema(path: Path) -> None:
    [package] = ray.autoscaler.__path__
    schema = json.loads((Path(package) / "ray-schema.json").read_text())
    [config] = documents(path)
    jsonschema.Draft7Validator(schema).validate(config)


@pytest.mark.parametrize("path", RAY_FILES[:2], ids=lambda path: path.stem)
def test_cloud_workers_are_spot_and_come_and_go_with_the_work(path: Path) -> None:
    [config] = documents(path)
    types = config["available_node_types"]
    head = types.pop(config["head_node_type"])
    assert head["resources"] == {"CPU": 0}
    assert "spot" not in json.dumps(head).lower()
    assert config["idle_timeout_minutes"] <= 15
    assert any("GPU" in node["resources"] for node in types.values())
    for node in types.values():
        assert node["min_workers"] == 0 < node["max_workers"] <= config["max_workers"]
        assert "spot" in json.dumps(node["node_config"]).lower()


def test_workers_on_google_cloud_say_what_ray_does_not_find_out_there() -> None:
    """Ray's provider fills in memory and type of GPU on AWS alone; no node comes for what no type is known to have."""
    [config] = documents(CLUSTER / "gcp.yaml")
    head = config["available_node_types"].pop(config["head_node_type"])
    assert head["resources"] == {"CPU": 0}
    for node in config["available_node_types"].values():
        has = node["resources"]
        assert has["memory"] > 2**30 * has["CPU"]
        assert ("GPU" in has) is any(name.startswith("accelerator_type:") for name in has)


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.stem)
def test_a_manifest_is_valid_by_kuberays_own_schema(path: Path) -> None:
    folder = next((folder for folder in CRDS if folder.is_dir()), None)
    if folder is None:
        pytest.skip(f"KubeRay's CRDs are in none of {', '.join(map(str, CRDS))}")
    kinds = kinds_of(folder)
    for document in documents(path):
        key = document["apiVersion"], document["kind"]
        if key[0].startswith("ray.io/"):
            jsonschema.Draft202012Validator(strict(kinds[key])).validate(document)


@functools.cache
def kinds_of(folder: Path) -> dict[tuple[str, str], Any]:
    """API version and kind -> schema, of the CRDs in a folder."""
    kinds = {}
    for crd in folder.glob("*.yaml"):
        [definition] = documents(crd)
        for version in definition["spec"]["versions"]:
            key = f"ray.io/{version['name']}", definition["spec"]["names"]["kind"]
            kinds[key] = version["schema"]["openAPIV3Schema"]
    return kinds


def strict(schema: Any) -> Any:
    """The schema with unknown keys refused, as the server's strict field validation does."""
    if isinstance(schema, list):
        return [strict(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    found = {key: strict(value) for key, value in schema.items()}
    if isinstance(schema.get("properties"), dict) and schema["properties"]:
        named = {"apiVersion": {}, "kind": {}, "metadata": {"type": "object"}} if "spec" in schema["properties"] else {}
        found["properties"] = named | found["properties"]
        if schema.get("type") == "object" and not schema.get("x-kubernetes-preserve-unknown-fields"):
            open_metadata = schema["properties"].keys() <= {"apiVersion", "kind", "metadata"}
            found.setdefault("additionalProperties", bool(open_metadata))
    elif schema.get("type") == "object":
        found.setdefault("additionalProperties", True)
    return found


# ----------------------------------------------------------------- security


@pytest.mark.parametrize("pod", ALL_PODS)
def test_a_pod_may_do_nothing_that_it_need_not(pod: dict[str, Any]) -> None:
    assert pod["automountServiceAccountToken"] is False
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["runAsUser"] > 0
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert not {"hostNetwork", "hostPID", "hostIPC"} & pod.keys()
    assert all("hostPath" not in volume for volume in pod["volumes"])
    for container in pod["containers"]:
        context = container["securityContext"]
        assert context["allowPrivilegeEscalation"] is False
        assert context["readOnlyRootFilesystem"] is True
        assert context["capabilities"] == {"drop": ["ALL"]}
        assert {"cpu", "memory"} <= container["resources"]["limits"].keys()
        assert any(mount["mountPath"] == "/tmp" for mount in container["volumeMounts"])
        for variable in container.get("env", []):
            if re.search("TOKEN|KEY|SECRET|PASSWORD", variable["name"]):
                assert "secretKeyRef" in variable["valueFrom"], variable["name"]


@pytest.mark.parametrize("path", [path for path in MANIFESTS if path.stem != "common"], ids=lambda path: path.stem)
def test_a_cluster_on_kubernetes_asks_for_the_token_of_a_secret(path: Path) -> None:
    for document in documents(path):
        spec = document["spec"].get("rayClusterSpec", document["spec"])
        assert spec["authOptions"] == {"mode": "token", "secretName": "sweeps-ray-token"}
        groups = spec["workerGroupSpecs"]
        limits = [group["template"]["spec"]["containers"][0]["resources"]["limits"] for group in groups]
        assert sorted("nvidia.com/gpu" in limit for limit in limits) == [False, True]


def test_pods_are_reached_by_each_other_and_by_the_operator_alone() -> None:
    [policy] = [d for d in documents(CLUSTER / "kubernetes" / "common.yaml") if d["kind"] == "NetworkPolicy"]
    assert policy["spec"]["policyTypes"] == ["Ingress", "Egress"]
    labels = policy["spec"]["podSelector"]["matchLabels"]
    for rule in policy["spec"]["ingress"]:
        assert rule["from"], "an empty `from` lets everyone in"
    for path in MANIFESTS:
        templates = json.dumps(documents(path)).count('"containers"')
        assert json.dumps(documents(path)).count(f'"labels": {json.dumps(labels)}') == templates


def test_the_ways_out_that_the_readme_speaks_of_are_there_to_be_opened() -> None:
    """Each commented line is valid YAML at its place."""
    text = (CLUSTER / "kubernetes" / "common.yaml").read_text(encoding="utf-8")
    opened = re.sub(r"^( +)# ((?:- |  )[ \w]*[-{\w].*(?::|\}).*)$", r"\1\2", text, flags=re.M)
    [policy] = [document for document in yaml.safe_load_all(opened) if document["kind"] == "NetworkPolicy"]
    rules = policy["spec"]["egress"]
    ports = {port["port"] for rule in rules for port in rule.get("ports", [])}
    assert ports == {53, 443, 9000, 5432, 3306, 2049, 80, 988}
    assert [block["ipBlock"]["cidr"] for block in rules[2]["to"]] == ["169.254.170.23/32", "169.254.169.254/32"]
    [closed] = [document for document in yaml.safe_load_all(text) if document["kind"] == "NetworkPolicy"]
    assert {port["port"] for port in closed["spec"]["egress"][1]["ports"]} == {53, 443}


@pytest.mark.parametrize("path", RAY_FILES, ids=lambda path: path.stem)
def test_a_ray_that_is_started_by_ssh_asks_for_a_token_and_hides_its_dashboard(path: Path) -> None:
    [config] = documents(path)
    starts = config["head_start_ray_commands"] + config["worker_start_ray_commands"]
    for line in (line for line in starts if "ray start" in line):
        assert "RAY_AUTH_MODE=token" in line
        assert "umask 077" in line
    assert "--dashboard-host=127.0.0.1" in "".join(config["head_start_ray_commands"])
    assert "chmod 600 /home/ray/.ray/auth_token" in "".join(config["setup_commands"])


@pytest.mark.parametrize("path", RAY_FILES, ids=lambda path: path.stem)
def test_the_image_has_the_folder_of_every_file_that_is_mounted_into_it(path: Path) -> None:
    """Docker makes what is missing as root, and then the image's user may neither close nor use it."""
    text = (CLUSTER / "Dockerfile").read_text(encoding="utf-8")
    made = {folder: user for user, folder in as_users(text, r"mkdir -m 700 (\S+)")}
    [config] = documents(path)
    for mount in config["file_mounts"]:
        assert made[str(Path(mount).parent)] == "ray", mount
    assert config["setup_commands"][0].startswith("test -O /home/ray/.ray/auth_token")


def as_users(dockerfile: str, pattern: str) -> Iterator[tuple[str, str]]:
    """What `pattern` finds in a Dockerfile's RUN lines, each with the user who runs it."""
    user = "root"
    for line in dockerfile.splitlines():
        word, _, rest = line.partition(" ")
        user = rest if word == "USER" else user
        if word == "RUN":
            yield from ((user, found) for found in re.findall(pattern, rest))


def test_what_google_is_asked_for_has_the_form_of_its_api() -> None:
    """`scheduling` is an object there, and a spot machine neither moves nor starts again by itself."""
    [config] = documents(CLUSTER / "gcp.yaml")
    for name, node in config["available_node_types"].items():
        if name != config["head_node_type"]:
            spot = {"provisioningModel": "SPOT", "onHostMaintenance": "TERMINATE", "automaticRestart": False}
            assert node["node_config"]["scheduling"] == spot


def test_the_image_has_every_way_to_store_things() -> None:
    with open(ROOT / "pyproject.toml", "rb") as file:
        extras = tomllib.load(file)["project"]["optional-dependencies"].keys() - {"dev", "dashboard"}
    installed = re.search(r'"\.\[(.*)\]"', (CLUSTER / "Dockerfile").read_text(encoding="utf-8"))
    assert installed is not None
    assert extras - set(installed[1].split(",")) == set()


def test_every_image_has_a_version() -> None:
    texts = {path: path.read_text(encoding="utf-8") for path in [*RAY_FILES, *MANIFESTS, CLUSTER / "Dockerfile"]}
    for path, text in texts.items():
        images = re.findall(r"^\s*(?:- )?image: *(\S+)|^FROM (\S+)", text, re.M)
        for image in filter(None, sum(images, ())):
            assert re.search(r":\d[\w.-]*$", image), f"{path.name}: {image}"
        assert ":latest" not in text


def test_the_image_has_the_ray_of_the_tested_versions_and_another_user_than_root() -> None:
    text = (CLUSTER / "Dockerfile").read_text(encoding="utf-8")
    pinned = re.search(r"^ray==(.+)$", (ROOT / "constraints.txt").read_text(), re.M)
    assert pinned is not None
    assert f"FROM rayproject/ray:{pinned[1]}-" in text
    assert re.findall(r"^USER (\S+)$", text, re.M)[-1] == "1000:100"
    assert text.count("pip install") == text.count("--constraint constraints.txt")
    for path in MANIFESTS:
        assert set(re.findall(r"rayVersion: (\S+)", path.read_text())) <= {pinned[1]}


def test_what_travels_to_the_builder_is_named() -> None:
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    rules = [line for line in lines if line and not line.startswith("#")]
    assert rules[0] == "*"
    copied = re.findall(r"^COPY --chown=\S+ (.+) \S+$", (CLUSTER / "Dockerfile").read_text(), re.M)
    for name in " ".join(copied).split():
        assert f"!{name}" in rules


# ------------------------------------------------------------------ programs


@pytest.mark.parametrize(("program", "name"), [("shellcheck", "slurm.sh"), ("hadolint", "Dockerfile")])
def test_the_files_checker_has_nothing_to_say(program: str, name: str) -> None:
    found = shutil.which(program, path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if found is None:
        pytest.skip(f"{program} is neither beside Python nor in PATH; fix: pip install 'genrec-sweeps[dev]'")
    words = ["--failure-threshold", "warning"] if program == "hadolint" else []
    done = subprocess.run([found, *words, CLUSTER / name], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_readme_names_every_file_and_no_other() -> None:
    text = (CLUSTER / "README.md").read_text(encoding="utf-8")
    there = {path.relative_to(CLUSTER).as_posix() for path in CLUSTER.rglob("*") if path.is_file()} - {"README.md"}
    named = set(re.findall(r"cluster/((?:kubernetes/)?\w+(?:\.\w+)?)\b", text)) - {"kubernetes"}
    assert named == there
