"""The guided mixture of experts: routing, dispatch, layer."""
