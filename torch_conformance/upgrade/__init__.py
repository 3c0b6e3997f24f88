"""May this fleet be upgraded? Two result files compared, the gate that makes them, and the ledger of all versions."""
