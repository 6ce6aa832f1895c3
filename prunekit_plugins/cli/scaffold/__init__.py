"""New plugins: packages that install and pass their own tests, one template for each kind of thing that hooks bring."""
