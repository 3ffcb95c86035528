// Edge cases and invariants of the kernels, meant to run under ASan and UBSan. Values are checked against Python twins
// in tests/unit/sage_native.

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <random>
#include <span>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include "sage/kernels/maximal_marginal_relevance.hpp"
#include "sage/kernels/rank_fusion.hpp"
#include "sage/kernels/text_splitter.hpp"
#include "sage/kernels/top_k.hpp"

using namespace sage::kernels;

namespace {

int num_failed = 0;

void check(bool holds, const char* claim, int line) {
    if (!holds) {
        std::fprintf(stderr, "kernels_test.cpp:%d: does not hold: %s\n", line, claim);
        ++num_failed;
    }
}

template <typename Call>
void check_refused(Call call, const char* claim, int line) {
    try {
        call();
    } catch (const std::invalid_argument&) {
        return;
    }
    check(false, claim, line);
}

#define CHECK(claim) check((claim), #claim, __LINE__)
#define CHECK_REFUSED(expression) check_refused([&] { (void)(expression); }, #expression " is refused", __LINE__)

void inner_product_of_every_length_matches_a_plain_sum() {
    for (std::size_t dim = 0; dim <= 70; ++dim) {
        // Exactly sized, so that reading one float too many is seen.
        std::vector<float> left(dim);
        std::vector<float> right(dim);
        float expected = 0.0F;
        for (std::size_t i = 0; i < dim; ++i) {
            left[i] = static_cast<float>(i % 7) - 3.0F;
            right[i] = static_cast<float>(i % 5) - 2.0F;
            expected += left[i] * right[i];
        }
        CHECK(inner_product(left, right) == expected);
    }
}

void top_k_orders_by_score_then_index_and_honours_the_mask() {
    const std::vector<float> rows{1, 0, 0, 1, 1, 0, 2, 0};
    const MatrixView matrix{rows.data(), 4, 2};
    const std::vector<float> query{1, 0};
    const MatrixView queries{query.data(), 1, 2};
    const auto found = top_k(matrix, queries, 3);
    CHECK(found.size() == 3 && found[0].index == 3 && found[1].index == 0 && found[2].index == 2);
    const std::vector<std::uint8_t> mask{1, 1, 1, 0};
    const auto masked = top_k(matrix, queries, 10, mask);
    CHECK(masked.size() == 3 && masked[0].index == 0 && masked[1].index == 2 && masked[2].index == 1);
    CHECK(top_k(matrix, queries, 0).empty());
    CHECK(top_k({}, {}, 5).empty());
    CHECK(top_k({nullptr, 0, 2}, queries, 5).empty());
    const std::vector<std::uint8_t> none(4, 0);
    CHECK(top_k(matrix, queries, 5, none).empty());
    const std::vector<std::uint8_t> short_mask(3, 1);
    CHECK_REFUSED(top_k(matrix, queries, 1, short_mask));
    CHECK_REFUSED(top_k(matrix, {query.data(), 2, 1}, 1));
}

void top_k_ranks_nan_last() {
    const float nan = std::numeric_limits<float>::quiet_NaN();
    const std::vector<float> rows{nan, -5, 3};
    const std::vector<float> query{1};
    const auto found = top_k({rows.data(), 3, 1}, {query.data(), 1, 1}, 3);
    CHECK(found[0].index == 2 && found[1].index == 1 && found[2].index == 0);
    CHECK(found[2].score == -std::numeric_limits<float>::infinity());
}

void top_k_is_the_same_across_block_borders() {
    constexpr std::size_t dim = 384;
    constexpr std::size_t num_rows = 1000;  // several blocks
    std::mt19937 random(7);
    std::uniform_int_distribution<int> value(-3, 3);
    std::vector<float> rows(num_rows * dim);
    for (float& x : rows) {
        x = static_cast<float>(value(random));
    }
    const MatrixView matrix{rows.data(), num_rows, dim};
    const MatrixView queries{rows.data(), 5, dim};
    const auto all = top_k(matrix, queries, num_rows);
    const auto few = top_k(matrix, queries, 10);
    CHECK(all.size() == 5 * num_rows && few.size() == 50);
    for (std::size_t query = 0; query < 5; ++query) {
        CHECK(all[query * num_rows].index == static_cast<std::int64_t>(query));
        for (std::size_t i = 0; i < 10; ++i) {
            CHECK(few[query * 10 + i].index == all[query * num_rows + i].index);
        }
    }
}

void re_selection_prefers_what_is_new() {
    const std::vector<float> rows{1, 0, 1, 0, 0, 1};
    const MatrixView candidates{rows.data(), 3, 2};
    const std::vector<float> relevance{0.9F, 0.9F, 0.5F};
    CHECK((maximal_marginal_relevance(candidates, relevance, 2, 0.5) == std::vector<std::int64_t>{0, 2}));
    CHECK((maximal_marginal_relevance(candidates, relevance, 9, 1.0) == std::vector<std::int64_t>{0, 1, 2}));
    CHECK(maximal_marginal_relevance({}, {}, 3, 0.5).empty());
    CHECK_REFUSED(maximal_marginal_relevance(candidates, std::span(relevance).first(2), 1, 0.5));
    CHECK_REFUSED(maximal_marginal_relevance(candidates, relevance, 1, 1.5));
    CHECK_REFUSED(maximal_marginal_relevance(candidates, relevance, 1, std::numeric_limits<double>::quiet_NaN()));
    const std::vector<float> unknown(3, std::numeric_limits<float>::quiet_NaN());
    CHECK(maximal_marginal_relevance(candidates, unknown, 3, 0.5).size() == 3);
}

void fusion_adds_reciprocal_ranks() {
    const std::vector<std::int64_t> first{7, 8};
    const std::vector<std::int64_t> second{8, 9};
    const std::vector<std::span<const std::int64_t>> rankings{first, second};
    const auto fused = reciprocal_rank_fusion(rankings, 60.0, {}, 10);
    CHECK(fused.size() == 3 && fused[0].id == 8 && fused[1].id == 7 && fused[2].id == 9);
    CHECK(fused[0].score == 1.0 / 62.0 + 1.0 / 61.0);
    CHECK(reciprocal_rank_fusion({}, 60.0, {}, 10).empty());
    const std::vector<double> weights{1.0};
    CHECK_REFUSED(reciprocal_rank_fusion(rankings, 60.0, weights, 10));
    CHECK_REFUSED(reciprocal_rank_fusion(rankings, -1.0, {}, 10));
    const std::vector<std::int64_t> twice{1, 1};
    const std::vector<std::span<const std::int64_t>> bad{twice};
    CHECK_REFUSED(reciprocal_rank_fusion(bad, 60.0, {}, 10));
}

void splitter_keeps_its_bounds_on_random_text() {
    const std::vector<std::string> alphabet{
        "a", "B", "wörd", "e.g.", ".", "? ", "。", "」", "漢字", "\U0001F600", " ", "  ", "\n", "\n\n", "\r\n\r\n",
        "\u00A0", "\u3000", "\t", "          ", "averyveryverylongword"};
    std::mt19937 random(11);
    for (int round = 0; round < 3000; ++round) {
        std::string text;
        const std::size_t num_parts = random() % 40;
        for (std::size_t i = 0; i < num_parts; ++i) {
            text += alphabet[random() % alphabet.size()];
        }
        const std::size_t chunk = 1 + random() % 30;
        const std::size_t overlap = random() % (chunk / 2 + 1);
        const auto passages = split_text(text, chunk, overlap);
        for (std::size_t i = 0; i < passages.size(); ++i) {
            CHECK(passages[i].start < passages[i].end);
            CHECK(passages[i].end - passages[i].start <= chunk);
            if (i > 0) {
                CHECK(passages[i].start > passages[i - 1].start && passages[i].end > passages[i - 1].end);
                CHECK(passages[i].start + overlap >= passages[i - 1].end);
            }
        }
    }
}

void splitter_refuses_what_is_not_utf8() {
    for (const char* bad : {"\x80", "\xC0\xAF", "a\xE2\x82", "\xED\xA0\x80", "\xF4\x90\x80\x80", "\xFF", "\xC3("}) {
        CHECK_REFUSED(split_text(bad, 10, 0));
    }
    CHECK(split_text("", 10, 0).empty());
    CHECK(split_text(" \n\t ", 10, 0).empty());
    CHECK(split_text(std::string_view("\0\0", 2), 1, 0).size() == 2);
    CHECK_REFUSED(split_text("abc", 0, 0));
    CHECK_REFUSED(split_text("abc", 10, 6));
    CHECK_REFUSED(split_text("abc", std::numeric_limits<std::size_t>::max(), 0));
}

}  // namespace

int main() {
    inner_product_of_every_length_matches_a_plain_sum();
    top_k_orders_by_score_then_index_and_honours_the_mask();
    top_k_ranks_nan_last();
    top_k_is_the_same_across_block_borders();
    re_selection_prefers_what_is_new();
    fusion_adds_reciprocal_ranks();
    splitter_keeps_its_bounds_on_random_text();
    splitter_refuses_what_is_not_utf8();
    return num_failed == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
