"""`xstreamer report`: one HTML file that shows what a dataset holds and why its clips were kept or not."""
