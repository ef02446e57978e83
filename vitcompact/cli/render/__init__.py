"""Result documents (the JSON of each verb) as tables that a person reads."""
