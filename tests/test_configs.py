"""The model repository as text: what each config promises, in every profile, and what a running server makes of it."""

from __future__ import annotations

import grpc
import pytest
from conftest import REPOSITORY
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2, service_pb2, service_pb2_grpc

from polylip.serving.doctor import PROFILES
from polylip.serving.launcher import GPU_PROFILE, Server

MODEL_PY_LINES = 80

CONFIGS = {path.parent.name: path for path in sorted(REPOSITORY.glob("*/config.pbtxt"))}
PROFILE_CONFIGS = sorted(REPOSITORY.glob("*/configs/*.pbtxt"))
TEXTS = [*CONFIGS.values(), *PROFILE_CONFIGS]


def name_of(path) -> str:
    return str(path.relative_to(REPOSITORY))


def parse(path) -> model_config_pb2.ModelConfig:
    return text_format.Parse(path.read_text(), model_config_pb2.ModelConfig())


MODELS = {name: parse(path) for name, path in CONFIGS.items()}
ENSEMBLES = [config for config in MODELS.values() if config.platform == "ensemble"]


def served(name: str, profile: str) -> model_config_pb2.ModelConfig:
    """What a profile serves: its own config where it has one."""
    path = REPOSITORY / name / "configs" / f"{profile}.pbtxt"
    return parse(path) if path.is_file() else MODELS[name]


def tensors(config: model_config_pb2.ModelConfig) -> dict[str, tuple]:
    """Direction and name -> type, shape with the batch dimension written out, whether it may be left out."""
    batch = [-1] if config.max_batch_size else []
    found = {f"in {t.name}": (t.data_type, [*batch, *t.dims], t.optional) for t in config.input}
    return found | {f"out {t.name}": (t.data_type, [*batch, *t.dims], False) for t in config.output}


def agree(some: dict[str, tuple], others: dict[str, tuple]) -> bool:
    """Whether two sets of tensors fit together: one may leave a dimension open that the other fixes."""
    return some.keys() == others.keys() and all(fits(tensor, others[key]) for key, tensor in some.items())


def fits(tensor: tuple, other: tuple) -> bool:
    (data_type, dims, *rest), (other_type, other_dims, *other_rest) = tensor, other
    same = len(dims) == len(other_dims) and all(a == b or -1 in (a, b) for a, b in zip(dims, other_dims, strict=True))
    return same and data_type == other_type and rest == other_rest


def streams(config: model_config_pb2.ModelConfig) -> bool:
    """Whether a request may get several responses: a decoupled model, or an ensemble that holds one."""
    models = [MODELS[step.model_name] for step in config.ensemble_scheduling.step]
    return any(model.model_transaction_policy.decoupled for model in [config, *models])


@pytest.mark.parametrize("path", TEXTS, ids=name_of)
def test_every_config_parses_and_is_named_after_its_folder(path):
    config = parse(path)
    assert config.name == path.relative_to(REPOSITORY).parts[0]
    assert config.input
    assert config.output


@pytest.mark.parametrize("path", TEXTS, ids=name_of)
def test_every_config_says_in_a_comment_what_the_model_does(path):
    assert path.read_text().startswith("# ")


def test_every_profile_of_the_doctor_has_configs_and_no_other_has():
    assert {path.stem for path in PROFILE_CONFIGS} == set(PROFILES) - {GPU_PROFILE}


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("name", MODELS)
def test_every_model_of_the_python_backend_has_a_short_adapter(name, profile):
    if served(name, profile).backend == "python":
        lines = (REPOSITORY / name / "1" / "model.py").read_text().splitlines()
        assert len(lines) <= MODEL_PY_LINES
        assert lines[0].startswith('"""')


@pytest.mark.parametrize("path", PROFILE_CONFIGS, ids=name_of)
def test_tensors_are_the_same_in_every_profile(path):
    default, config = MODELS[path.parents[1].name], parse(path)
    assert agree(tensors(config), tensors(default))
    assert config.model_transaction_policy == default.model_transaction_policy
    if config.backend == "openvino":  # batches in a dimension of its own, as it cannot take them from Triton
        assert config.max_batch_size == 0
        assert config.WhichOneof("scheduling_choice") is None
    else:
        assert bool(config.max_batch_size) == bool(default.max_batch_size)
        if config.max_batch_size > 1:
            assert config.WhichOneof("scheduling_choice") == default.WhichOneof("scheduling_choice")


@pytest.mark.parametrize("profile", PROFILES)
def test_a_model_in_front_of_a_sequence_keeps_order(profile):
    configs = {name: served(name, profile) for name in MODELS}
    fronts = [step for ensemble in ENSEMBLES for step in steps_in_front_of_a_sequence(ensemble, configs)]
    assert "detect" in fronts
    for name in fronts:
        one_by_one = configs[name].max_batch_size <= 1 and [g.count for g in configs[name].instance_group] == [1]
        assert configs[name].dynamic_batching.preserve_ordering or one_by_one, name


def steps_in_front_of_a_sequence(ensemble, configs) -> list[str]:
    steps = ensemble.ensemble_scheduling.step
    wanted = {
        tensor
        for step in steps
        if configs[step.model_name].HasField("sequence_batching")
        for tensor in step.input_map.values()
    }
    return [step.model_name for step in steps if wanted & set(step.output_map.values())]


@pytest.mark.parametrize("ensemble", ENSEMBLES, ids=lambda config: config.name)
def test_steps_and_ensemble_agree_on_every_tensor(ensemble):
    """Inputs flow from the ensemble or an earlier step, all that must be mapped is, every output is made by a step."""
    batch = [-1] if ensemble.max_batch_size else []
    flowing: dict[str, tuple] = {t.name: (t.data_type, [*batch, *t.dims]) for t in ensemble.input}
    optional = {t.name for t in ensemble.input if t.optional}
    for step in ensemble.ensemble_scheduling.step:
        known = tensors(MODELS[step.model_name])
        required = {key for key, (*_, may_lack) in known.items() if key.startswith("in ") and not may_lack}
        assert required <= {f"in {key}" for key in step.input_map}, step.model_name
        for key, value in step.input_map.items():
            data_type, dims, may_lack = known[f"in {key}"]
            assert fits(flowing[value], (data_type, dims)), f"{step.model_name}.{key}"
            assert may_lack or value not in optional, f"{step.model_name}.{key} needs what the caller may leave out"
        for key, value in step.output_map.items():
            assert value not in flowing, f"{value} is made twice"
            flowing[value] = known[f"out {key}"][:2]
    for tensor in ensemble.output:
        assert fits(flowing[tensor.name], (tensor.data_type, [*batch, *tensor.dims])), tensor.name


@pytest.mark.parametrize("ensemble", ENSEMBLES, ids=lambda config: config.name)
def test_no_ensemble_can_hang_on_a_refused_sequence(ensemble):
    assert beside_a_sequence(ensemble) == set()


@pytest.mark.parametrize(
    ("steps", "beside"),
    [
        # both are ready at once
        (["track: FRAMES -> OUT", "mel: AUDIO -> windows"], {("track", "mel")}),
        # `track` is alone in its wave, but the other line's first step, or its second, may still run
        (["detect: FRAMES -> boxes", "mel: AUDIO -> windows", "track: boxes -> OUT"], {("track", "mel")}),
        (
            ["detect: FRAMES -> boxes", "mel: AUDIO -> m", "lips: m -> x", "track: boxes -> OUT"],
            {("track", "mel"), ("track", "lips")},
        ),
        # a decoupled step still runs when its first response has made `track` ready
        (["synthesize: TEXT -> chunk", "track: chunk -> OUT"], {("track", "synthesize")}),
    ],
)
def test_the_linter_finds_an_ensemble_that_can_hang(steps, beside):
    assert beside_a_sequence(synthetic(steps)) == beside


@pytest.mark.parametrize(
    "steps",
    [
        ["track: FRAMES -> boxes", "detect: boxes -> a", "mel: boxes -> b"],
        ["detect: FRAMES -> boxes", "mel: FRAMES -> m", "track: boxes m -> OUT"],
    ],
)
def test_the_linter_passes_an_ensemble_whose_sequence_runs_alone(steps):
    assert beside_a_sequence(synthetic(steps)) == set()


def beside_a_sequence(ensemble: model_config_pb2.ModelConfig) -> set[tuple[str, str]]:
    """Pairs of a sequence-batched step and a step that may be in flight when a request is refused there.

    Triton starts a step as soon as its inputs are there. So only what the sequence-batched step waits for (and that
    ends with one response) or what waits for it is sure not to run beside it. A decoupled model that lets something
    ride along sends one response, and its end with it.
    """
    steps = ensemble.ensemble_scheduling.step
    maker = {tensor: i for i, step in enumerate(steps) for tensor in step.output_map.values()}

    def waits_for(i: int) -> set[int]:
        direct = {maker[tensor] for tensor in steps[i].input_map.values() if tensor in maker}
        return direct.union(*map(waits_for, direct))

    return {
        (step.model_name, other.model_name)
        for i, step in enumerate(steps)
        if MODELS[step.model_name].HasField("sequence_batching")
        for j, other in enumerate(steps)
        if i != j and i not in waits_for(j)
        if j not in waits_for(i) or (decoupled(other.model_name) and "RIDE" not in other.input_map)
    }


def synthetic(steps: list[str]) -> model_config_pb2.ModelConfig:
    """An ensemble from lines of `model: inputs -> outputs`."""
    config = model_config_pb2.ModelConfig(name="synthetic", platform="ensemble")
    for line in steps:
        model, flow = line.split(": ")
        inputs, outputs = (side.split() for side in flow.split(" -> "))
        step = config.ensemble_scheduling.step.add(model_name=model)
        step.input_map.update({f"IN{i}": name for i, name in enumerate(inputs)})
        step.output_map.update({f"OUT{i}": name for i, name in enumerate(outputs)})
    made = {name for step in config.ensemble_scheduling.step for name in step.output_map.values()}
    used = {name for step in config.ensemble_scheduling.step for name in step.input_map.values()}
    for name in sorted(used - made):
        config.input.add(name=name)
    return config


@pytest.mark.parametrize("ensemble", ENSEMBLES, ids=lambda config: config.name)
def test_everything_behind_a_decoupled_step_has_ridden_through_it(ensemble):
    """Or Triton does not load the ensemble."""
    ridden: set[str] | None = None
    for step in ensemble.ensemble_scheduling.step:
        if ridden is not None:
            assert set(step.input_map.values()) <= ridden, step.model_name
        if decoupled(step.model_name):
            ridden = set()
        if ridden is not None:
            ridden |= set(step.output_map.values())
    assert ridden is None or {t.name for t in ensemble.output} <= ridden


def decoupled(name: str) -> bool:
    return MODELS[name].model_transaction_policy.decoupled


@pytest.mark.parametrize("name", MODELS)
def test_the_running_server_serves_the_tensors_of_the_config(name, server: Server):
    with grpc.insecure_channel(server.url) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        config = stub.ModelConfig(service_pb2.ModelConfigRequest(name=name), timeout=10).config
        metadata = stub.ModelMetadata(service_pb2.ModelMetadataRequest(name=name), timeout=10)
    promised = MODELS[name]
    assert agree(tensors(config), tensors(promised))
    assert config.max_batch_size == served(name, "lite").max_batch_size
    assert config.model_transaction_policy.decoupled == streams(promised)
    assert dict(config.parameters) == dict(served(name, "lite").parameters)
    shown = {f"in {t.name}": list(t.shape) for t in metadata.inputs} | {
        f"out {t.name}": list(t.shape) for t in metadata.outputs
    }
    assert shown == {key: dims for key, (_, dims, _) in tensors(served(name, "lite")).items()}
