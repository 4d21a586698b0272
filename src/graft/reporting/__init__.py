"""From scores to what is read: results.json, its statistics, tables and figures."""
