"""How loaded experts are and how sure the gate is of them: counted on both tiers, merged, forecast, watched."""
