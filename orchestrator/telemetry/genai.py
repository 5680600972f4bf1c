"""Names of the OpenTelemetry semantic conventions for generative AI that are used here.

Written down rather than imported: the package that has them keeps them in a module named `_incubating`, whose names
come and go. Source: the "semantic-conventions-genai" repository of OpenTelemetry, as of semantic conventions 1.44.
"""

from __future__ import annotations

from typing import Final

OPERATION_NAME: Final = "gen_ai.operation.name"
PROVIDER_NAME: Final = "gen_ai.provider.name"
REQUEST_MODEL: Final = "gen_ai.request.model"
RESPONSE_MODEL: Final = "gen_ai.response.model"
RESPONSE_FINISH_REASONS: Final = "gen_ai.response.finish_reasons"
USAGE_INPUT_TOKENS: Final = "gen_ai.usage.input_tokens"
USAGE_OUTPUT_TOKENS: Final = "gen_ai.usage.output_tokens"
USAGE_CACHE_READ_INPUT_TOKENS: Final = "gen_ai.usage.cache_read.input_tokens"
INPUT_MESSAGES: Final = "gen_ai.input.messages"
OUTPUT_MESSAGES: Final = "gen_ai.output.messages"
AGENT_NAME: Final = "gen_ai.agent.name"
TOOL_NAME: Final = "gen_ai.tool.name"
TOOL_TYPE: Final = "gen_ai.tool.type"
TOOL_CALL_ARGUMENTS: Final = "gen_ai.tool.call.arguments"
TOOL_CALL_RESULT: Final = "gen_ai.tool.call.result"
WORKFLOW_NAME: Final = "gen_ai.workflow.name"
ERROR_TYPE: Final = "error.type"

CHAT: Final = "chat"
EXECUTE_TOOL: Final = "execute_tool"
INVOKE_AGENT: Final = "invoke_agent"
INVOKE_WORKFLOW: Final = "invoke_workflow"

# Who serves the model is not known behind an OpenAI-compatible address; the conventions then ask for the API's name.
PROVIDER: Final = "openai"

# The conventions' metrics, and the bucket boundaries that they prescribe. Dots and units as Prometheus writes them.
TOKEN_USAGE: Final = "gen_ai_client_token_usage"
TOKEN_BUCKETS: Final = tuple(float(4**power) for power in range(14))
OPERATION_DURATION: Final = "gen_ai_client_operation_duration_seconds"
DURATION_BUCKETS: Final = tuple(0.01 * 2**power for power in range(14))
