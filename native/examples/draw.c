/* Draws a picture in plain C. Usage: draw BUNDLE OUT.png */
#include <latentrt/latentrt.h>
#include <stdio.h>

static int report(latentrt_error* error) {
    fprintf(stderr, "%s\n", latentrt_error_text(error));
    latentrt_error_free(error);
    return 1;
}

static int show_step(const latentrt_step* step, void* user) {
    (void)user;
    printf("call %zu of %zu\n", latentrt_step_index(step) + 1, latentrt_step_total(step));
    return 1;
}

int main(int count, char** words) {
    const latentrt_text prompt = {"a large red star on a blue background", LATENTRT_NUL};
    const uint64_t seed = 1;
    latentrt_request request;
    latentrt_pipeline* pipeline = NULL;
    latentrt_images* images = NULL;
    latentrt_error* error = NULL;
    const uint8_t* png = NULL;
    size_t length = 0;
    FILE* file = NULL;
    if (count != 3) return 2;
    if (latentrt_open(words[1], NULL, &pipeline, &error) != LATENTRT_OK) return report(error);
    latentrt_request_init(&request, sizeof request);
    request.prompts = &prompt;
    request.prompts_count = 1;
    request.seeds = &seed;
    request.seeds_count = 1;
    if (latentrt_draw(pipeline, &request, show_step, NULL, &images, &error) != LATENTRT_OK) return report(error);
    if (latentrt_images_png(images, 0, &png, &length, &error) != LATENTRT_OK) return report(error);
    file = fopen(words[2], "wb");
    if (file == NULL || fwrite(png, 1, length, file) != length || fclose(file) != 0) return 1;
    latentrt_images_free(images);
    latentrt_close(pipeline);
    return 0;
}
