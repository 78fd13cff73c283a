"""HTTP: dialects in, `ModelService` calls out. `app.create_app` is the way in."""
