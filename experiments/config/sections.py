"""The settings of a run: one typed tree. `rollout`, `retrieval`, `reward` and `learner` are in the config.py of their rooms."""

from dataclasses import dataclass, field
from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveInt

from learner.config import LearnerConfig
from retrieval_actors.config import RetrievalConfig
from rewards.config import RewardConfig
from rollout.config import RolloutConfig


@dataclass
class LoopConfig:
    """Section `train`: length, batch sizes, placement, checkpoints, initial policy."""

    iterations: PositiveInt = 400
    """Iterations at most; one is roll out, score, learn, broadcast."""
    minutes: NonNegativeFloat = 0.0
    """Minutes of training (without evaluations) after which no iteration starts; 0: no limit."""
    turns: NonNegativeInt = 0
    """Sampled turns after which no iteration starts, to compare methods at equal numbers; 0: no limit."""
    tokens: NonNegativeInt = 0
    """Sampled tokens after which no iteration starts, with those of route values and found steps; 0: no limit."""
    questions_per_iteration: PositiveInt = 16
    """Questions (offline: recorded turns) of one iteration, over all workers."""
    num_rollout_workers: PositiveInt = 2
    """Processes that sample and measure; each holds a copy of the policy."""
    gpus_per_rollout_worker: Annotated[float, Field(ge=0, le=1)] = 0.0
    """GPUs that Ray reserves for each; 0: sample on the CPU."""
    placement: Literal["apart", "colocated"] = "apart"
    """`apart`: learners have their own GPUs. `colocated`: every GPU has one learner and one rollout worker, each with its share of it."""
    dry_run: bool = False
    """Check everything, print the placement and the GPU memory it needs, and end: no GPU, no weights, no Ray."""
    overlap: Annotated[int, Field(ge=0, le=1)] = 0
    """0: roll out, then learn. 1: roll out the next batch while learning, one policy version behind; needs `learner.sampler_correction`."""
    trace: bool = False
    """Write a timeline of every iteration into the run folder (`trace-000001.json`), for ui.perfetto.dev or chrome://tracing."""
    evaluate_every: NonNegativeInt = 25
    """Iterations between two evaluations on the validation questions, which choose the best policy; 0: only at the end."""
    checkpoint_every: NonNegativeInt = 20
    """Iterations between two checkpoints; 0: only at the end."""
    keep_last: PositiveInt = 2
    """How many of the newest checkpoints are kept."""
    keep_best: NonNegativeInt = 1
    """How many with the best validation score are kept as well. The best policy itself is always in `policy/`."""
    max_restarts: NonNegativeInt = 3
    """How often a run restarts its learner group from the last checkpoint when a rank is lost; 0: never."""
    resume: str = "none"
    """`none`: start a new run. `auto`: resume from the newest intact checkpoint of this run, if there is one. Or a checkpoint folder."""
    dump_rollouts: str = ""
    """Folder for the trajectories and scored turns of every iteration; empty: not written."""
    replay_rollouts: str = ""
    """Folder that `dump_rollouts` wrote, to learn from instead of rolling out; empty: roll out."""
    rollout_only: bool = False
    """Roll out and score with the initial policy; learn nothing."""
    policy: str = "experiments/worlds/cold_start_policy"
    """Initial policy: a folder in Hugging Face format, or a model's name on the hub."""
    seed: NonNegativeInt = 0
    """Seed of the order of questions, of sampling and of learning (`learner.seed` follows it)."""


@dataclass
class DataConfig:
    """Section `data`: which questions, and where they come from."""

    name: str = "atlas"
    """`atlas`, `relay` (generated fictional worlds), `real_atlas`, `2wiki`, `atlas_2wiki` (both), `ottqa`, `wikitables`, `hotpotqa`,
    `2wikimultihopqa`, `musique`; `nq`, `triviaqa`, `popqa`, `bamboogle` (their passages: `retrieval.folders`); the paper's `paper_2wiki`,
    `infoseek`, `webqa`, `dynvqa`, `openwikitable`, `tabfact`; `recorded_steps` (offline); `questions` (a file of your own); or
    MODULE:FUNCTION. See docs/04_data.md."""
    path: str = ""
    """Folder or file of the data set; empty: its place in `data.folder`."""
    folder: str = "../shared/data"
    """Folder of the published data sets."""
    heldout_path: str = ""
    """`questions`: a second file with the held-out questions; empty: they are taken from `path`."""
    image_folder: str = ""
    """Folder of the pictures of a file; pictures elsewhere are refused. Empty: the folder of the file."""
    kb_folder: str = "kbs"
    """Where the knowledge bases of a data set are built, once."""
    seed: NonNegativeInt = 0
    """Seed of the worlds, or of the choice of held-out questions."""
    train_questions: PositiveInt = 2048
    """Distinct training questions, at most."""
    worlds: PositiveInt = 4
    """`atlas`: worlds of each split."""
    countries: PositiveInt = 24
    """`atlas`: countries of each world. `relay`: names of each ring."""
    hops: Annotated[int, Field(ge=1, le=8)] = 4
    """`relay`: facts that a question needs, one after the other."""
    knowledge_bases: Annotated[int, Field(ge=2, le=8)] = 5
    """`relay`: knowledge bases over which the relations are spread."""
    doubled: Annotated[float, Field(ge=0, le=1)] = 0.4
    """`relay`: share of facts that stand in two knowledge bases."""
    gold: Literal["given", "found", "hidden"] = "given"
    """Gold steps of the training questions: `given` by the data set, if it has any; `found` by the initial policy from questions and answers
    alone, once, before training (docs/16_found_steps.md); or `hidden`: those of the data set are not used."""
    gold_samples: PositiveInt = 4
    """`gold=found`: episodes sampled for each question; each searches every knowledge base."""
    faults: dict[str, Annotated[float, Field(ge=0, le=1)]] = field(default_factory=dict)
    """Share of the training questions whose knowledge bases are broken, for each way: `empty`, `random`, `stale`, `contradicting`, `failing`,
    `slow`, `instructions` (rollout/faults.py). Where nothing can be found, `unknown` is the right answer."""


@dataclass
class EvaluationConfig:
    """Section `evaluation`: how policies are measured."""

    questions: PositiveInt = 512
    """Held-out questions for the measurements before and after, and for the baselines."""
    validation_questions: PositiveInt = 96
    """Questions that choose the best policy."""
    temperature: NonNegativeFloat = 0.0
    """Sampling temperature; 0: greedy."""
    min_confidence: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Answers with less confidence count as no answer, for abstention alone."""
    baselines: list[str] = field(default_factory=lambda: ["random", "all", "oracle"])
    """Methods measured with the trained policy beside its own routing: `random`, `all` (every knowledge base), `oracle`, ... of rollout/methods."""
    start_baselines: list[str] = field(default_factory=lambda: ["oracle"])
    """The same, measured with the policy that training starts from."""
    methods: list[str] = field(default_factory=list)
    """What `r1-router evaluate` measures: methods as above, `sampled`, or `every`; empty: `policy` and `baselines`."""
    samples: PositiveInt = 4
    """Episodes of each question that `sampled` averages over (avg@k), at `rollout.temperature`."""
    folder: str = "evaluations"
    """Where `r1-router evaluate` writes its results, question by question."""


@dataclass
class TrackingConfig:
    """Section `tracking`; see docs/09_tracking.md."""

    mlflow: bool = True
    """Log to MLflow as well; the run folder always has everything."""
    uri: str = "sqlite:///mlflow.db"
    """MLflow's store: a local database, or the address of a server."""
    experiment: str = "r1-router"
    """Name of the experiment, created if missing."""
    parent: str = ""
    """Name of a sweep: MLflow shows all its runs under one parent run."""
    model: str = "r1-router"
    """The policy is registered as MODEL-DATASET and copied to the store; empty: neither."""
    patience_s: NonNegativeFloat = 60.0
    """Seconds that the end of a run waits for MLflow; iterations never wait."""
    traces: NonNegativeInt = 2
    """Episodes of each iteration that become MLflow traces; eight times as many of each measurement; 0: none. Needs `mlflow`."""


@dataclass
class ClusterConfig:
    """Section `ray`: the cluster."""

    num_cpus: NonNegativeInt = 0
    """CPUs of a Ray that the command starts; 0: those of the machine, and at least what the run needs. Unused with RAY_ADDRESS."""
    object_store_mb: Annotated[int, Field(ge=80)] = 512
    """Memory of the object store on each node. With RAY_ADDRESS, `ray start --object-store-memory` decides."""
    gpu_gib: NonNegativeFloat = 80.0
    """Memory of one GPU in GiB, for the dry run."""
    join_s: NonNegativeFloat = 0.0
    """Seconds to wait for nodes that are joining, or that the autoscaler can start, before a run that cannot be scheduled is refused."""
    cluster_file: str = "ray_cluster.yaml"
    """Cluster file of Ray's launcher on whose nodes a dry run places processes with GPUs; empty: none."""


@dataclass
class TrainConfig:
    """All settings of a run."""

    name: str = "run"
    """Name of the run and of its folder."""
    runs_folder: str = "runs"
    """Folder of all run folders."""
    train: LoopConfig = field(default_factory=LoopConfig)
    data: DataConfig = field(default_factory=DataConfig)
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    retrieval: RetrievalConfig = field(default_factory=RetrievalConfig)
    reward: RewardConfig = field(default_factory=RewardConfig)
    learner: LearnerConfig = field(default_factory=LearnerConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    ray: ClusterConfig = field(default_factory=ClusterConfig)
