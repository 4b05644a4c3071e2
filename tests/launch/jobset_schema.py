"""The fields of a JobSet as JSON schema, but for its Job template, which is a plain batch/v1 Job's.

Source: the CustomResourceDefinition of JobSet v1alpha2 that its project publishes, kubernetes-sigs/jobset,
config/components/crd/bases/jobset.x-k8s.io_jobsets.yaml (read at 0107852 of 2025); `additionalProperties` says that a
misspelt field is an error, which the API server only warns of.
"""

TEXT, NUMBER, FLAG = {"type": "string"}, {"type": "integer"}, {"type": "boolean"}


def _object(required: tuple[str, ...] = (), **properties: dict) -> dict:
    return {"type": "object", "properties": properties, "required": list(required), "additionalProperties": False}


def _list(items: dict, **more: int) -> dict:
    return {"type": "array", "items": items, **more}


def _one_of(*values: str) -> dict:
    return {"type": "string", "enum": list(values)}


_METADATA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "pattern": "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$", "maxLength": 63},
        "annotations": {"type": "object", "additionalProperties": TEXT},
        "labels": {"type": "object", "additionalProperties": TEXT},
    },
    "required": ["name"],
}

_RULE = _object(
    ("action", "name"),
    action=_one_of("FailJobSet", "RestartJobSet", "RestartJobSetAndIgnoreMaxRestarts"),
    name=TEXT,
    onJobFailureReasons=_list(TEXT),
    targetReplicatedJobs=_list(TEXT),
)

_REPLICATED_JOB = _object(
    ("name", "template"),
    dependsOn=_list(_object(("name", "status"), name=TEXT, status=_one_of("Ready", "Complete")), maxItems=1),
    groupName=TEXT,
    name=TEXT,
    replicas=NUMBER,
    template={"type": "object"},
)

JOBSET = _object(
    ("apiVersion", "kind", "metadata", "spec"),
    apiVersion={"const": "jobset.x-k8s.io/v1alpha2"},
    kind={"const": "JobSet"},
    metadata=_METADATA,
    spec=_object(
        coordinator=_object(("replicatedJob",), jobIndex=NUMBER, podIndex=NUMBER, replicatedJob=TEXT),
        failurePolicy=_object(
            maxRestarts=NUMBER, restartStrategy=_one_of("Recreate", "BlockingRecreate"), rules=_list(_RULE)
        ),
        managedBy=TEXT,
        network=_object(enableDNSHostnames=FLAG, publishNotReadyAddresses=FLAG, subdomain=TEXT),
        replicatedJobs=_list(_REPLICATED_JOB),
        startupPolicy=_object(("startupPolicyOrder",), startupPolicyOrder=_one_of("AnyOrder", "InOrder")),
        successPolicy=_object(("operator",), operator=_one_of("All", "Any"), targetReplicatedJobs=_list(TEXT)),
        suspend=FLAG,
        ttlSecondsAfterFinished={"type": "integer", "minimum": 0},
    ),
)
